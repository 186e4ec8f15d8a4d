"use strict";
(() => {
  const config = { displayModeBar: false, responsive: true, doubleClick: false, showTips: false };
  const NARROW = 500;
  const root = document.documentElement;
  const PRINT_WIDTH = 680; // CSS pixels between the margins of A4

  // What depends on the scheme: Plotly's own defaults are for white paper.
  const theme = (annotations) => {
    const style = getComputedStyle(root);
    const value = (name) => style.getPropertyValue(name).trim();
    const changes = {
      "font.color": value("--ink"),
      "hoverlabel.bgcolor": value("--panel"),
      "hoverlabel.bordercolor": value("--line"),
      "hoverlabel.font.color": value("--ink"),
    };
    annotations.forEach((annotation, index) => {
      if (!annotation.bordercolor) changes[`annotations[${index}].bgcolor`] = value("--bg");
    });
    return changes;
  };

  const canvases = () => [...document.querySelectorAll(".canvas")];
  const drawn = () => canvases().filter((canvas) => canvas.data);
  const colour = (canvas, more = {}) =>
    Plotly.relayout(canvas, { ...theme(canvas.layout.annotations || []), ...more });

  // On a phone the legend has two columns, and the plot is as much higher.
  const makeRoom = (canvas, data, layout) => {
    const entries = data.filter((trace) => trace.showlegend !== false).length;
    if (entries < 2 || layout.showlegend === false) return;
    layout.legend = { ...layout.legend, entrywidth: 0.5, entrywidthmode: "fraction", font: { size: 11 } };
    layout.height += 16 * Math.ceil(entries / 2);
    canvas.style.height = `${layout.height}px`;
  };

  const draw = (canvas) => {
    const { data, layout } = JSON.parse(canvas.parentElement.querySelector("script").textContent);
    if (canvas.clientWidth < NARROW) makeRoom(canvas, data, layout);
    Plotly.newPlot(canvas, data, layout, config);
    colour(canvas);
  };

  const drawAll = (root) => root.querySelectorAll(".canvas").forEach(draw);

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

  const sort = (heading, direction) => {
    const table = heading.closest("table");
    const body = table.tBodies[0];
    const column = heading.cellIndex;
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // absent figures stay last
      return sign * compare(a, b);
    });
    body.append(...rows.map(([, row]) => row));
    table.querySelectorAll("th[aria-sort]").forEach((other) => other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", direction);
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("th button");
    if (!button) return;
    const heading = button.closest("th");
    sort(heading, heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
  });

  // --- schemes and paper

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn().forEach((c) => colour(c)));

  addEventListener("beforeprint", () => {
    document.querySelectorAll("details.print").forEach((details) => (details.open = true));
    drawn().forEach((canvas) => {
      const share = canvas.clientWidth / document.querySelector("main").clientWidth;
      const width = Math.round(PRINT_WIDTH * (share > 0.9 ? 1 : Math.max(share, 0.31)));
      colour(canvas, { "font.color": "#1a1e23", autosize: false, width });
    });
  });
  addEventListener("afterprint", () => {
    drawn().forEach((canvas) => colour(canvas, { width: null, autosize: true }));
  });

  // --- a page that is served while its run goes

  const replace = (fresh) => {
    const main = document.querySelector("main");
    const old = new Map([...main.children].map((part) => [part.id, part]));
    const marker = [...main.children].find((part) => part.getBoundingClientRect().bottom > 0);
    const before = marker ? marker.getBoundingClientRect().top : 0;
    for (const part of [...fresh.children]) {
      const current = old.get(part.id);
      if (!current) main.append(part);
      else if (current.dataset.digest !== part.dataset.digest) {
        keepOpen(current, part);
        current.replaceWith(part);
      } else continue;
      drawAll(part);
    }
    const now = marker && document.getElementById(marker.id);
    if (now) scrollBy({ top: now.getBoundingClientRect().top - before, behavior: "instant" });
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
