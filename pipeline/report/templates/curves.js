// Puts charts that answer to the reader into every .live element: `data-curves` names the curves it shows.
(() => {
  "use strict";
  const { models, curves } = JSON.parse(document.getElementById("curves-data").textContent);
  const state = { hidden: new Set(), log: false };
  const charts = [];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const text = (value) => Number(value.toFixed(3)).toString();

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // Strengths of all architectures together; a curve has no value where it has not been measured. log 0 does not exist.
  function aligned(curve) {
    const shown = models.filter(({ name }) => name in curve.models);
    const all = new Set(shown.flatMap(({ name }) => curve.models[name].epsilon));
    const strengths = [...all].filter((epsilon) => !state.log || epsilon > 0).sort((a, b) => a - b);
    const column = (name, key) => {
      const { epsilon, [key]: values } = curve.models[name];
      return strengths.map((strength) => { const i = epsilon.indexOf(strength); return i < 0 ? null : values[i]; });
    };
    return { shown, strengths, column };
  }

  class Chart {
    constructor(name, parent) {
      this.curve = curves[name];
      this.index = 0;
      this.place = element("div", { role: "slider", tabindex: "0", class: "plot", "aria-valuemin": "0" });
      this.place.setAttribute("aria-label", `Strength, ${this.curve.title}`);
      this.readout = element("p", { class: "readout", "aria-hidden": "true" });
      parent.append(element("div", { class: "chart" }, element("p", { class: "title" }, this.curve.title), this.place, this.readout));
      this.place.addEventListener("keydown", (event) => this.key(event));
    }

    key(event) {
      const last = this.aligned.strengths.length - 1;
      const steps = { ArrowRight: this.index + 1, ArrowUp: this.index + 1, ArrowLeft: this.index - 1, ArrowDown: this.index - 1, Home: 0, End: last };
      if (!(event.key in steps)) return;
      event.preventDefault();
      this.say(Math.min(Math.max(steps[event.key], 0), last));
      const strength = this.aligned.strengths[this.index];
      this.plot.setCursor({ left: this.plot.valToPos(strength, "x"), top: 0 });
    }

    say(index) {
      const { shown, strengths, column } = this.aligned;
      this.index = Math.min(index, strengths.length - 1);
      const values = shown.filter(({ name }) => !state.hidden.has(name)).map(({ name }) => {
        const [value, low, high] = ["robust_accuracy", "low", "high"].map((key) => column(name, key)[this.index]);
        return value === null ? `${name} –` : `${name} ${text(value)} [${text(low)}, ${text(high)}]`;
      });
      const said = `${text(strengths[this.index])}: ${values.join(", ") || "nothing shown"}`;
      this.readout.textContent = `Strength ${said}`;
      this.place.setAttribute("aria-valuenow", this.index);
      this.place.setAttribute("aria-valuemax", strengths.length - 1);
      this.place.setAttribute("aria-valuetext", said);
    }

    draw() {
      this.plot?.destroy();
      this.aligned = aligned(this.curve);
      const { shown, strengths, column } = this.aligned;
      const [ink, grid, paper] = ["--ink", "--grid", "--paper"].map(colour);
      const last = strengths[strengths.length - 1];
      const range = state.log ? [strengths[0] / 1.15, last * 1.15] : [-0.02 * last, last * 1.02];
      const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 20 };
      const series = [{}], data = [strengths], bands = [];
      for (const { name, colour: stroke, dash, width } of shown) {
        const show = !state.hidden.has(name), at = series.length;
        series.push(
          { label: name, stroke, width, dash, show, spanGaps: true, points: { show: true, size: 7, stroke, fill: paper } },
          { show, stroke, width: 0.5, dash, spanGaps: true, points: { show: false } },
          { show, stroke, width: 0.5, dash, spanGaps: true, points: { show: false } },
        );
        data.push(column(name, "robust_accuracy"), column(name, "low"), column(name, "high"));
        bands.push({ series: [at + 2, at + 1], fill: `${stroke}24` });
      }
      // A logarithmic axis names the strengths that were measured, as far as there is room.
      const spaced = (plot, found) => found.reduce((kept, value) =>
        kept.length && plot.valToPos(value, "x") - plot.valToPos(kept[kept.length - 1], "x") < 34 ? kept : [...kept, value], []);
      const x = { ...axis, label: this.curve.unit, values: (_, found) => found.map(text) };
      if (state.log) Object.assign(x, { splits: () => strengths, filter: (plot, found) => { const kept = new Set(spaced(plot, found)); return found.map((value) => kept.has(value) ? value : null); }, values: (_, found) => found.map((value) => value === null ? "" : text(value)) });
      this.plot = new uPlot({
        width: this.place.clientWidth, height: 260, series, bands, legend: { show: false },
        scales: { x: { time: false, distr: state.log ? 3 : 1, range }, y: { range: [-0.02, 1.02] } },
        axes: [x, { ...axis, label: "robust accuracy" }],
        cursor: { drag: { x: false, y: false }, y: false, points: { show: (plot, i) => i % 3 === 1 && undefined } },
        hooks: { setCursor: [(plot) => plot.cursor.idx !== null && plot.cursor.left >= 0 && this.say(plot.cursor.idx)] },
      }, data, this.place);
      this.say(this.index);
    }
  }

  function sample({ colour: stroke, dash, width }) {
    const line = `<svg width="28" height="8" aria-hidden="true"><line x1="0" x2="28" y1="4" y2="4" stroke="${stroke}" stroke-width="${width}" stroke-dasharray="${dash.join(" ")}"/></svg>`;
    return new DOMParser().parseFromString(line.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"'), "image/svg+xml").documentElement;
  }

  function button(name, pressed, toggle, ...content) {
    const made = element("button", { type: "button", "data-name": name, "aria-pressed": pressed }, ...content);
    made.addEventListener("click", () => { toggle(); update(); });
    return made;
  }

  function update() {
    for (const made of document.querySelectorAll(".controls button")) {
      const { name } = made.dataset;
      made.setAttribute("aria-pressed", name === "" ? state.log : !state.hidden.has(name));
    }
    for (const chart of charts) chart.draw();
  }

  for (const live of document.querySelectorAll(".live")) {
    const names = live.dataset.curves.split(" ");
    const toggle = (name) => state.hidden.delete(name) || state.hidden.add(name);
    live.append(element("div", { class: "controls", role: "group", "aria-label": "Architectures and scale of all charts" },
      ...models.map((model) => button(model.name, true, () => toggle(model.name), sample(model), ` ${model.name}`)),
      button("", false, () => { state.log = !state.log; }, "log scale")));
    const panels = element("div", { class: "panels" });
    live.append(panels);
    live.hidden = false;
    live.closest("figure").classList.add("is-live");
    charts.push(...names.map((name) => new Chart(name, panels)));
  }
  for (const chart of charts) chart.draw();
  dark.addEventListener("change", update);
  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(update, 150); });
})();
