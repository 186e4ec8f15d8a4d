"use strict";
// The page: loads the model that lies beside it, and classifies photographs and the camera.

const TOP = 5; // classes shown
const THUMBNAIL = 320; // pixels of the longer side, twice what is shown

const at = (id) => document.getElementById(id);
const facts = document.documentElement.dataset;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Show one line above everything, or nothing. */
function notice(text, bad = false) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
  at("notice").classList.toggle("bad", bad);
}

// --- the model

async function load(file) {
  let answer;
  try {
    answer = await fetch(file);
  } catch {
    throw new Error(`${file} cannot be loaded; check the connection and load this page again.`);
  }
  if (!answer.ok) throw new Error(`${file} cannot be loaded (${answer.status}); copy the whole folder to the server.`);
  return answer;
}

/** The content of a file, with the bytes that have come in told as they come. */
async function bytesOf(file, tell) {
  const reader = (await load(file)).body.getReader();
  const parts = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    tell(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** Open the model: one thread with SIMD, so that the server needs no headers of its own. */
async function openModel() {
  const total = (Number(facts.bytes) + Number(facts.runtimeBytes)) / 1e6;
  let got = 0;
  const tell = (count) => {
    got += count / 1e6;
    notice(`Loading the model: ${got.toFixed(1)} of ${total.toFixed(1)} MB`);
  };
  const [preprocess, labels, wasm, network] = await Promise.all([
    load("preprocess.json").then((answer) => answer.json()),
    load("labels.txt").then((answer) => answer.text()),
    bytesOf("onnxruntime-web/ort-wasm-simd-threaded.wasm", tell),
    bytesOf(facts.file, tell),
  ]);
  ort.env.logLevel = "error"; // its warnings only concern graph optimisations
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { mjs: new URL("onnxruntime-web/ort-wasm-simd-threaded.js", location.href).href };
  ort.env.wasm.wasmBinary = wasm;
  const session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"] });
  return { session, spec: preprocess.input, temperature: preprocess.temperature ?? 1, labels: labels.split("\n") };
}

/** Classify a source of pixels: its most probable classes, and the milliseconds of preparing it and of the network. */
async function classify(model, source) {
  const begin = performance.now();
  const pixels = normalised(evalPixels(source, model.spec), model.spec);
  const image = new ort.Tensor("float32", pixels, [1, 3, model.spec.height, model.spec.width]);
  const prepared = performance.now();
  const { logits } = await model.session.run({ image });
  const end = performance.now();
  const probabilities = softmax(logits.data, model.temperature);
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
  const guesses = order.slice(0, TOP).map((index) => (
    { index, label: model.labels[index], probability: probabilities[index] }
  ));
  return { guesses, prepare: prepared - begin, run: end - prepared };
}

// --- pixels

/** The rows of a picture or of a frame of the camera, with transparency over white. */
function pixelsOf(picture, width, height) {
  const canvas = document.createElement("canvas");
  let context = null;
  return {
    width,
    height,
    rows(top, count) {
      if (!context || canvas.height < count) {
        [canvas.width, canvas.height] = [width, count];
        context = canvas.getContext("2d", { willReadFrequently: true });
      }
      context.fillStyle = "#fff";
      context.fillRect(0, 0, width, count);
      context.drawImage(picture, 0, top, width, count, 0, 0, width, count);
      return context.getImageData(0, 0, width, count).data;
    },
  };
}

/** Decode a file, upright. The colours stay as they are in the file, since Pillow converts no colour profiles either. */
async function decode(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error("This file is damaged or is not an image that this browser can read; use JPEG, PNG or WebP.");
  }
}

function thumbnail(bitmap) {
  const factor = Math.min(1, THUMBNAIL / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * factor));
  canvas.height = Math.max(1, Math.round(bitmap.height * factor));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// --- what is shown

function answer({ guesses, prepare, run }) {
  const classes = make("dl", "classes");
  for (const { label, probability } of guesses) {
    const bar = make("div", "bar");
    bar.append(make("span"));
    bar.firstChild.style.width = `${100 * probability}%`;
    classes.append(make("dt", "", label), make("dd", "", `${(100 * probability).toFixed(1)}%`), bar);
  }
  const took = `${run.toFixed(0)} ms for the model, ${prepare.toFixed(0)} ms to prepare the image`;
  return [classes, make("p", "took", took)];
}

/** Classify a file and fill in its row. */
async function show(model, file, row) {
  const text = make("div");
  text.append(make("p", "name", file.name || "pasted image"));
  try {
    const bitmap = await decode(file);
    try {
      text.append(...answer(await classify(model, pixelsOf(bitmap, bitmap.width, bitmap.height))));
      row.replaceChildren(thumbnail(bitmap), text);
    } finally {
      bitmap.close(); // else its pixels would stay until the next collection of garbage
    }
  } catch (error) {
    text.classList.add("none");
    text.append(make("p", "error", error.message));
    row.replaceChildren(text);
  }
}

/** Take files in, one after another; those that came last are at the top. */
function takeFiles(model) {
  let last = Promise.resolve();
  return (files) => {
    notice(files.length ? "" : "There was no image file in that; save the image, and choose its file.", !files.length);
    const rows = files.map((file) => {
      const row = make("li");
      row.append(make("p", "name none", `${file.name} (waiting)`));
      return row;
    });
    at("results").prepend(...rows);
    files.forEach((file, index) => {
      last = last.then(() => show(model, file, rows[index]));
      last = last.then(() => new Promise(requestAnimationFrame)); // the page is drawn between two photographs
    });
  };
}

// --- the camera

async function watch(model, video) {
  while (video.srcObject) {
    await new Promise(requestAnimationFrame);
    if (!video.srcObject || video.readyState < video.HAVE_CURRENT_DATA) continue;
    const found = await classify(model, pixelsOf(video, video.videoWidth, video.videoHeight));
    at("live").querySelector(".answer").replaceChildren(...answer(found));
  }
}

function stopCamera(video) {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  at("live").hidden = true;
  at("live").querySelector(".answer").replaceChildren();
  at("camera").textContent = "Use the camera";
}

async function startCamera(model, video) {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play();
  } catch (error) {
    stopCamera(video);
    return notice(`The camera cannot be used (${error.message}); connect one, and allow this page to use it.`, true);
  }
  notice("");
  at("live").hidden = false;
  at("camera").textContent = "Stop the camera";
  return watch(model, video);
}

function offerCamera(model) {
  const video = at("video");
  if (!navigator.mediaDevices?.getUserMedia) {
    at("camera").disabled = true;
    at("camera").textContent = "The camera works over https only";
    return;
  }
  at("camera").addEventListener("click", () => (video.srcObject ? stopCamera(video) : startCamera(model, video)));
}

// --- the start

function offerFiles(model) {
  const take = takeFiles(model);
  at("files").addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  addEventListener("paste", (event) => take([...event.clipboardData.files]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || at("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
    take([...event.dataTransfer.files]);
  });
}

async function start() {
  if (location.protocol === "file:") {
    notice("A browser does not let a page that is opened from disk read the files beside it, so this page must be "
      + "served: run python -m http.server in its folder, and open http://localhost:8000.", true);
    return;
  }
  try {
    const model = await openModel();
    offerFiles(model);
    offerCamera(model);
    notice("");
    at("drop").hidden = false;
  } catch (error) {
    notice(error.message, true);
  }
}

start();
