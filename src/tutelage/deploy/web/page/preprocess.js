"use strict";
// From the pixels of a photograph to the input of the network, as `tutelage.data.input_spec` and Pillow do it.
//
// A canvas would resize with weights of its own, which differ from browser to browser, and the network would see
// another image than the one that it was evaluated on. So the resampling is written here: Pillow's weights (they
// widen with the factor, which is its antialiasing), its two passes, and its 22 bits of fixed-point arithmetic. The
// first pass is always along the rows. Pillow 13 takes columns first where the height shrinks by more than twice as
// many pixels as the width, as in images that are more than twice as high as wide: there pixels differ a little.

const PRECISION = 22; // bits of a weight, as in Pillow's Resample.c

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

// The support of each filter in pixels, and the filter.
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, (given) => {
    const x = Math.abs(given);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0;
  }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/** The pixels of the input that one pixel of the output is made of, and their weights as integers. */
function taps(length, resized, index, interpolation) {
  const scale = length / resized;
  if (interpolation === "nearest") {
    let place = 0.5 * scale;
    for (let i = 0; i < index; i++) place += scale; // summed up as in Pillow, whose rounding decides at the edges
    return { first: Math.min(length - 1, Math.trunc(place)), weights: [1 << PRECISION] };
  }
  const [support, filter] = FILTERS[interpolation];
  const stretch = Math.max(1, scale);
  const center = (index + 0.5) * scale;
  const first = Math.max(0, Math.trunc(center - support * stretch + 0.5));
  const end = Math.min(length, Math.trunc(center + support * stretch + 0.5));
  const weights = [];
  for (let x = first; x < end; x++) weights.push(filter((x - center + 0.5) / stretch));
  const sum = weights.reduce((a, b) => a + b, 0) || 1;
  return { first, weights: weights.map((w) => Math.trunc((w / sum) * 2 ** PRECISION + (w < 0 ? -0.5 : 0.5))) };
}

/** Python's `round`: halves go to the even number. */
function roundHalfEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/** [width, height] to resize to before the crop. */
function resizedTo(width, height, spec) {
  const toWidth = Math.floor(spec.width / spec.crop_pct);
  const toHeight = Math.floor(spec.height / spec.crop_pct);
  if (spec.crop_mode === "squash") return [toWidth, toHeight];
  if (spec.crop_mode === "center" && toWidth === toHeight) {
    const short = Math.min(width, height);
    return [Math.trunc((toWidth * width) / short), Math.trunc((toHeight * height) / short)];
  }
  const ratios = [width / toWidth, height / toHeight];
  const ratio = spec.crop_mode === "border" ? Math.max(...ratios) : Math.min(...ratios);
  return [Math.max(1, roundHalfEven(width / ratio)), Math.max(1, roundHalfEven(height / ratio))];
}

/** For each pixel of the cropped side its taps; null: it lies outside of the image. */
function cropped(length, resized, wanted, interpolation) {
  const offset = resized >= wanted ? roundHalfEven((resized - wanted) / 2) : -Math.floor((wanted - resized) / 2);
  return Array.from({ length: wanted }, (_, i) => {
    const index = i + offset;
    return index < 0 || index >= resized ? null : taps(length, resized, index, interpolation);
  });
}

/** One pass along the first axis of a band of pixels: RGBA or RGB in, RGB out. */
function blend(pixels, from, step, { weights }, out, to) {
  let red = 1 << (PRECISION - 1), green = red, blue = red;
  for (let i = 0, p = from; i < weights.length; i++, p += step) {
    const weight = weights[i];
    red += pixels[p] * weight;
    green += pixels[p + 1] * weight;
    blue += pixels[p + 2] * weight;
  }
  out[to] = red >> PRECISION; // a Uint8ClampedArray limits it to 0..255
  out[to + 1] = green >> PRECISION;
  out[to + 2] = blue >> PRECISION;
}

/**
 * The evaluation view: resize, then crop the centre.
 *
 * @param source {width, height, rows(top, count)}: an image whose rows of RGBA pixels are read in bands, since a
 *   canvas of a whole photograph would be larger than phones allow.
 * @param spec `input` of preprocess.json.
 * @returns Uint8ClampedArray, RGB, height x width x 3.
 */
function evalPixels(source, spec) {
  const [width, height] = resizedTo(source.width, source.height, spec);
  const across = cropped(source.width, width, spec.width, spec.interpolation);
  const down = cropped(source.height, height, spec.height, spec.interpolation);
  const seen = down.filter(Boolean);
  const top = Math.min(...seen.map((tap) => tap.first));
  const bottom = Math.max(...seen.map((tap) => tap.first + tap.weights.length));
  const line = 3 * spec.width;
  const narrow = new Uint8ClampedArray(line * (bottom - top));
  const band = Math.max(1, Math.floor(2 ** 22 / source.width));
  for (let y = top; y < bottom; y += band) {
    const count = Math.min(band, bottom - y);
    const pixels = source.rows(y, count);
    for (let row = 0; row < count; row++) {
      const from = 4 * source.width * row;
      const to = line * (y - top + row);
      across.forEach((tap, x) => tap && blend(pixels, from + 4 * tap.first, 4, tap, narrow, to + 3 * x));
    }
  }
  const fill = spec.crop_mode === "border" ? spec.mean.map((value) => roundHalfEven(255 * value)) : [0, 0, 0];
  const out = new Uint8ClampedArray(line * spec.height);
  down.forEach((tap, y) => across.forEach((inside, x) => {
    const to = line * y + 3 * x;
    if (tap && inside) blend(narrow, line * (tap.first - top) + 3 * x, line, tap, out, to);
    else out.set(fill, to);
  }));
  return out;
}

/** (pixels / 255 - mean) / std as float32, channels first. */
function normalised(pixels, spec) {
  const area = spec.width * spec.height;
  const out = new Float32Array(3 * area);
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) out[c * area + i] = (pixels[3 * i + c] / 255 - spec.mean[c]) / spec.std[c];
  }
  return out;
}

/** Probabilities of logits that are divided by the temperature. */
function softmax(logits, temperature) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(logits, (logit) => Math.exp((logit - most) / temperature));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}
