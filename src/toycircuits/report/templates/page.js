"use strict";
// Draws each figure, in the colours of the page, when it comes near the window.
(() => {
  const root = document.documentElement;
  const template = JSON.parse(document.getElementById("template").textContent);
  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 620, PAPER = 680; // pixels: width of a narrow screen, and of a printed page without margins

  const printing = { on: false };
  const isDark = () => !printing.on && (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const shade = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Figures are drawn for white paper. In dark mode these colours are replaced.
  const swapped = () => isDark()
    ? { "#000000": "#e6e8ea", black: "#e6e8ea", "#222222": shade("--fore"), "#444444": shade("--soft"),
        white: shade("--back"), "#ffffff": shade("--back"), "#e6e6e6": shade("--grid"), "#cccccc": shade("--line"),
        "#777777": "#9aa3ab", "rgba(255,255,255,0.7)": "rgba(20,23,26,0.7)" }
    : {};

  const recolour = (value, map) => {
    if (typeof value === "string") return Object.hasOwn(map, value) ? map[value] : value;
    if (Array.isArray(value)) return value.length > 2000 ? value : value.map((part) => recolour(part, map));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, recolour(part, map)]));
    }
    return value;
  };

  const built = (figure, canvas) => {
    const map = swapped();
    const { data, layout } = recolour(JSON.parse(figure.querySelector("script").textContent), map);
    layout.template = recolour(template, map);
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.autosize = true;
    layout.height = Number(canvas.dataset.height);
    canvas.style.height = `${layout.height}px`;
    canvas.style.zoom = "";
    if (printing.on) {
      layout.width = Math.max(PAPER, parseInt(canvas.style.minWidth, 10));
      canvas.style.zoom = PAPER / layout.width;
    } else if (canvas.clientWidth < NARROW) {
      const margin = { ...template.layout.margin, ...layout.margin };
      layout.margin = { ...margin, l: Math.min(margin.l, 56), r: 8 };
      const legends = data.filter((trace) => trace.showlegend !== false && trace.name).length;
      if (legends && layout.showlegend !== false) {
        const room = 24 * Math.min(legends, 10) + 40;
        layout.legend = { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom" };
        layout.margin.b = (margin.b || 76) + room;
        layout.height += room;
        canvas.style.height = `${layout.height}px`;
      }
    }
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: shade("--soft"), activecolor: shade("--fore") };
    // Remove the buttons with which Plotly would send a figure to its servers.
    const without = ["sendChartToCloud", "sendDataToCloud", "select2d", "lasso2d"];
    return [data, layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: without }];
  };

  const drawn = new Set();
  const draw = (figure) => {
    const canvas = figure.querySelector(".canvas");
    drawn.add(figure);
    try {
      Plotly.react(canvas, ...built(figure, canvas));
    } catch (error) {
      setTimeout(() => { throw error; }, 0); // shows the error on the console, and lets the other figures be drawn
    }
  };

  const figures = [...document.querySelectorAll("figure")];
  const waiting = [];
  const next = () => {
    const figure = waiting.shift();
    if (!figure) return;
    draw(figure);
    setTimeout(next, 0); // one figure at a time, so that the page can be scrolled meanwhile
  };
  const observer = new IntersectionObserver((entries) => {
    const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    near.forEach((figure) => observer.unobserve(figure));
    const idle = waiting.length === 0;
    waiting.push(...near);
    if (idle && near.length) next();
  }, { rootMargin: "500px" });
  figures.forEach((figure) => observer.observe(figure));

  const repaint = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colours`);
    drawn.forEach(draw);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("toycircuits-theme", root.dataset.theme); } catch (e) { /* the browser offers no storage */ }
    repaint();
  });
  system.addEventListener("change", repaint);
  button.textContent = isDark() ? "Light" : "Dark";

  let theme;
  window.addEventListener("beforeprint", () => {
    printing.on = true;
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    figures.forEach((figure) => { observer.unobserve(figure); draw(figure); });
  });
  window.addEventListener("afterprint", () => {
    printing.on = false;
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    repaint();
  });
})();
