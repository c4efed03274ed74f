"use strict";
// Draws every figure from the data in the page, in the colours that the style sheet has at that moment: again when the
// colour scheme changes, and for paper. The legend's buttons hide and show a row in all figures.
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set();
  const finePointer = window.matchMedia("(pointer: fine)");
  const paper = window.matchMedia("print");
  let printing = false;

  // {"$css": name} is a colour of the style sheet; everything else is as it stands.
  function resolved(node, styles) {
    if (Array.isArray(node)) return node.map((each) => resolved(each, styles));
    if (node === null || typeof node !== "object") return node;
    if (typeof node.$css === "string") return styles.getPropertyValue(node.$css).trim();
    return Object.fromEntries(Object.entries(node).map(([key, each]) => [key, resolved(each, styles)]));
  }

  function layoutOf(figure, width, styles) {
    const colour = (name) => styles.getPropertyValue(name).trim();
    const own = resolved(figure.layout, styles);
    const narrow = width < 420;
    const layout = {
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 12 : 13, color: colour("--ink") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: narrow ? 46 : 56, r: 12, t: 10, b: 46 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      showlegend: false,
      dragmode: finePointer.matches ? "zoom" : false,
      width,
      height: figure.height,
      ...own,
    };
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      const axis = layout[key];
      layout[key] = {
        gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--grid"),
        ticks: "outside", tickcolor: colour("--line"), ticklen: 4, nticks: narrow ? 6 : 8,
        fixedrange: !finePointer.matches, ...axis,
        title: { standoff: 10, ...axis.title, font: { size: narrow ? 12 : 13, color: colour("--muted") } },
      };
    }
    return layout;
  }

  // What a figure measures on a sheet: the sheet's layout is not there yet when the figures have to be drawn for it.
  function onPaper(place) {
    const whole = place.closest(".gradients figure, .waiting figure, figure:last-child:nth-child(odd)");
    return whole && !place.closest(".many:not(.timeline)") ? 640 : 295;
  }

  function draw(name) {
    const place = document.getElementById(name);
    const figure = figures[name];
    const styles = getComputedStyle(root);
    const data = resolved(figure.data, styles).map((trace) => ({
      ...trace, visible: !(trace.meta && hidden.has(trace.meta.row)),
    }));
    const width = printing ? onPaper(place) : Math.floor(place.getBoundingClientRect().width);
    const settings = { displayModeBar: false, scrollZoom: false, showTips: false };
    Plotly.react(place, data, layoutOf(figure, width, styles), settings);
  }

  const drawAll = () => Object.keys(figures).forEach(draw);

  // Paper is always light, and as wide as a sheet is.
  function print(on) {
    if (on === printing) return;
    printing = on;
    if (on) root.dataset.scheme = "print";
    else delete root.dataset.scheme;
    drawAll();
  }

  // Only a new width asks for new drawings: on a phone the height changes whenever the address bar comes or goes.
  let waiting = 0;
  let width = root.clientWidth;
  window.addEventListener("resize", () => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(drawAll);
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  paper.addEventListener("change", (event) => print(event.matches));
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const row = Number(button.dataset.row);
      const show = hidden.has(row);
      if (show) hidden.delete(row);
      else hidden.add(row);
      for (const twin of document.querySelectorAll(`.legend button[data-row="${row}"]`)) {
        twin.setAttribute("aria-pressed", String(show));
      }
      drawAll();
    });
  }

  drawAll();
  print(paper.matches);
})();
