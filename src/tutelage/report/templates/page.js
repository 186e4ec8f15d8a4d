"use strict";
(() => {
  const config = { displayModeBar: false, responsive: true, doubleClick: false, showTips: false };
  const root = document.documentElement;
  const PRINT_WIDTH = 680; // CSS pixels between the margins of A4

  // What depends on the scheme: Plotly's own defaults are for white paper.
  const PAPER = { "--ink": "#1a1e23", "--bg": "#ffffff", "--panel": "#f5f6f7", "--line": "#dfe3e7" };
  const onScreen = () => {
    const style = getComputedStyle(root);
    return Object.fromEntries(Object.keys(PAPER).map((name) => [name, style.getPropertyValue(name).trim()]));
  };

  const theme = (scheme, annotations) => {
    const changes = {
      "font.color": scheme["--ink"],
      "hoverlabel.bgcolor": scheme["--panel"],
      "hoverlabel.bordercolor": scheme["--line"],
      "hoverlabel.font.color": scheme["--ink"],
    };
    annotations.forEach((annotation, index) => {
      if (!annotation.bordercolor) changes[`annotations[${index}].bgcolor`] = scheme["--bg"];
    });
    return changes;
  };

  const canvases = () => [...document.querySelectorAll(".canvas")];
  const drawn = () => canvases().filter((canvas) => canvas.data);
  const colour = (canvas, scheme = onScreen(), more = {}) =>
    Plotly.relayout(canvas, { ...theme(scheme, canvas.layout.annotations || []), ...more });

  // --- legends, as lists of the page: Plotly's own do not wrap well on a phone

  const DASHES = { dash: "6 4", dot: "2 3", dashdot: "7 3 2 3" };
  const GLYPHS = { star: "★", "circle-open": "○", square: "■", diamond: "◆" };
  const plain = (name) => name.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

  const line = (trace) => {
    const drawing = (name, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
      return element;
    };
    const svg = drawing("svg", { width: 26, height: 10, "aria-hidden": "true" });
    const { color, width = 2, dash } = trace.line;
    svg.append(drawing("line", {
      x1: 0, x2: 26, y1: 5, y2: 5, stroke: color, "stroke-width": width, "stroke-dasharray": DASHES[dash] || "none",
    }));
    return svg;
  };

  const glyph = (trace) => {
    const mark = document.createElement("span");
    mark.ariaHidden = "true";
    mark.style.color = trace.marker.color;
    mark.textContent = trace.type === "bar" ? "■" : GLYPHS[trace.marker.symbol] || "●";
    return mark;
  };

  const legend = (canvas, data, layout) => {
    const named = data.filter((trace) => trace.name && trace.showlegend !== false && trace.type !== "heatmap");
    if (layout.showlegend === false || named.length < 2) return;
    const list = document.createElement("ul");
    list.className = "legend";
    named.sort((a, b) => (a.legendrank ?? 1000) - (b.legendrank ?? 1000));
    for (const trace of named) {
      const entry = document.createElement("li");
      const isLine = (trace.mode || "").includes("lines");
      entry.append(isLine ? line(trace) : glyph(trace), plain(trace.name));
      list.append(entry);
    }
    canvas.closest("figure").insertBefore(list, canvas.parentElement);
    layout.showlegend = false;
  };

  const draw = (canvas) => {
    const { data, layout } = JSON.parse(canvas.closest("figure").querySelector("script").textContent);
    legend(canvas, data, layout);
    Plotly.newPlot(canvas, data, layout, config);
    colour(canvas);
  };

  const drawAll = (root) => {
    root.querySelectorAll(".canvas").forEach(draw);
    root.querySelectorAll("button.copy").forEach((button) => (button.hidden = false)); // they need this script
  };

  // --- sorting

  const key = (row, column) => {
    const raw = row.cells[column].dataset.sort;
    if (raw === undefined) return null;
    const number = Number(raw);
    return Number.isNaN(number) ? raw : number;
  };

  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };

  // Rows that a long table keeps as JSON are made from its first row when they are needed.
  const made = (pattern, cells) => {
    const row = pattern.cloneNode(true);
    row.classList.remove("strong");
    cells.forEach(([text, key, note], place) => {
      const cell = row.cells[place];
      const bdi = document.createElement("bdi");
      bdi.textContent = text;
      cell.replaceChildren(bdi);
      if (note) {
        const below = document.createElement("small");
        below.append(Object.assign(document.createElement("bdi"), { textContent: note }));
        cell.append(below);
      }
      if (key === null) delete cell.dataset.sort;
      else cell.dataset.sort = key;
    });
    return row;
  };

  const rowsOf = (table) => {
    if (!table.everyRow) {
      const rest = table.parentElement.querySelector("script.rest");
      const there = [...table.tBodies[0].rows];
      const later = rest ? JSON.parse(rest.textContent).map((cells) => made(there[0], cells)) : [];
      table.everyRow = [...there, ...later];
      table.shownRows = there.length;
    }
    return table.everyRow;
  };

  const sort = (heading, direction) => {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const sign = direction === "ascending" ? 1 : -1;
    const rows = rowsOf(table).map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // absent figures stay last
      return sign * compare(a, b);
    });
    table.everyRow = rows.map(([, row]) => row);
    table.tBodies[0].replaceChildren(...table.everyRow.slice(0, table.shownRows));
    table.querySelectorAll("th[aria-sort]").forEach((other) => other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", direction);
  };

  document.addEventListener("click", (event) => {
    const whole = event.target.closest("button.whole");
    if (!whole) return;
    const table = whole.parentElement.previousElementSibling.querySelector("table");
    table.tBodies[0].replaceChildren(...rowsOf(table));
    table.shownRows = table.everyRow.length;
    whole.parentElement.remove();
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("th button");
    if (!button) return;
    const heading = button.closest("th");
    sort(heading, heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
  });

  // --- copying

  const copied = (button) => {
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  };

  const select = (element) => getSelection().selectAllChildren(element);

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    // a browser that does not allow it leaves the text selected, for the reader's own Ctrl-C
    if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(() => copied(button), () => select(code));
    else select(code);
  });

  // --- schemes and paper

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn().forEach((c) => colour(c)));

  addEventListener("beforeprint", () => {
    document.querySelectorAll("details.print").forEach((details) => (details.open = true));
    drawn().forEach((canvas) => {
      const share = canvas.clientWidth / document.querySelector("main").clientWidth;
      const width = Math.round(PRINT_WIDTH * (share > 0.9 ? 1 : Math.max(share, 0.31)));
      colour(canvas, PAPER, { autosize: false, width });
    });
  });
  addEventListener("afterprint", () => {
    drawn().forEach((canvas) => colour(canvas, onScreen(), { width: null, autosize: true }));
  });

  // --- a page that is served while its run goes

  const replace = (fresh) => {
    const main = document.querySelector("main");
    const old = new Map([...main.children].map((part) => [part.id, part]));
    const marker = [...main.children].find((part) => part.getBoundingClientRect().bottom > 0);
    const before = marker ? marker.getBoundingClientRect().top : 0;
    let previous = null;
    for (const part of [...fresh.children]) {
      const current = old.get(part.id);
      old.delete(part.id);
      if (current && current.dataset.digest === part.dataset.digest) {
        previous = current;
        continue;
      }
      if (current) {
        keepOpen(current, part);
        current.replaceWith(part);
      } else if (previous) previous.after(part);
      else main.prepend(part);
      previous = part;
      drawAll(part);
    }
    old.forEach((gone) => gone.remove());
    listContents();
    const now = marker && document.getElementById(marker.id);
    if (now) scrollBy({ top: now.getBoundingClientRect().top - before, behavior: "instant" });
  };

  const listContents = () => {
    const entries = [...document.querySelectorAll("main > section")].map((part) => {
      const entry = document.createElement("li");
      const link = document.createElement("a");
      link.href = `#${part.id}`;
      link.textContent = part.dataset.title;
      entry.append(link);
      return entry;
    });
    document.querySelector("nav ol").replaceChildren(...entries);
  };

  const keepOpen = (current, part) => {
    const open = [...current.querySelectorAll("details")].map((details) => details.open);
    part.querySelectorAll("details").forEach((details, index) => (details.open = open[index] || details.open));
  };

  const watch = (address, milliseconds) => {
    let tag = "";
    const poll = async () => {
      try {
        const answer = await fetch(address, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
        if (answer.status === 200) {
          const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").body;
          replace(fresh);
          tag = answer.headers.get("ETag") || "";
        }
        root.dataset.state = answer.ok || answer.status === 304 ? "live" : "lost";
      } catch {
        root.dataset.state = "lost";
      }
      setTimeout(poll, milliseconds);
    };
    poll();
  };

  drawAll(document);
  if (root.dataset.watch) watch(root.dataset.watch, 2000);
})();
