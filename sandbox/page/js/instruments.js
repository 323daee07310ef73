// The pipeline's gauges: a number and the last two minutes of it, drawn by hand on a canvas.

import { element, milliseconds, number } from "./dom.js";

const KEPT = 120; // one point a second
const FIRST = 30;

const GAUGES = [
  { name: "Events a second", lines: (s) => [s.events_per_s], read: (s) => [[number(s.events_per_s), ""]] },
  {
    name: "Freshness",
    lines: (s) => [s.freshness_p99_ms, s.freshness_p50_ms],
    read: (s) => (s.freshness_p50_ms === null ? [["–", "nothing measured yet"]] : [[milliseconds(s.freshness_p50_ms), "ms p50"], [milliseconds(s.freshness_p99_ms ?? 0), "ms p99"]]),
  },
  { name: "Lag", lines: (s) => [s.lag_records], read: (s) => [[number(s.lag_records), s.lag_records === 1 ? "record" : "records"]] },
  { name: "Unaccounted", lines: (s) => [s.unaccounted], read: (s) => [[number(s.unaccounted), s.unaccounted === 0 ? "every event has its fate" : "events without a fate"]], alarm: (s) => s.unaccounted !== 0 },
];

// What became of an event; the order is that of the sum under the gauges.
const FATES = { applied: "applied", noop: "without effect", private: "private, only counted", dead: "dead-lettered", absent: "absent" };

export class Instruments {
  constructor(root, ledger, provenance) {
    Object.assign(this, { root, ledger, provenance, points: [] });
    this.parts = GAUGES.map((gauge) => {
      const value = element("p");
      const canvas = element("canvas", { "aria-hidden": "true" });
      const node = element("div", { className: "gauge" }, element("h3", { text: gauge.name }), value, canvas);
      return { gauge, value, canvas, node };
    });
    root.replaceChildren(...this.parts.map((part) => part.node));
    new ResizeObserver(() => this.#draw()).observe(root);
    matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => this.#draw());
  }

  show(stats) {
    this.points = [...this.points.slice(1 - KEPT), stats];
    for (const { gauge, value, node } of this.parts) {
      value.replaceChildren(...gauge.read(stats).flatMap(([figure, unit]) => [element("b", { text: figure }), element("span", { text: unit })]));
      node.classList.toggle("alarm", gauge.alarm?.(stats) ?? false);
    }
    const sum = Object.values(stats.totals).reduce((total, count) => total + count, 0);
    this.ledger.replaceChildren(element("b", { text: number(sum) }), " events = ", ...Object.entries(stats.totals)
      .filter(([fate, count]) => count || fate === "applied")
      .flatMap(([fate, count], index) => [index ? " + " : "", element("b", { text: number(count) }), ` ${FATES[fate] ?? fate}`]));
    const facts = [stats.generation_id && `Generation ${stats.generation_id}`, stats.activation && `activation ${stats.activation}`, stats.viewers && `${number(stats.viewers)} viewers`, stats.kafka_version, stats.store_version];
    this.provenance.textContent = facts.filter(Boolean).join("  ·  ");
    this.#draw();
  }

  #draw() {
    const style = getComputedStyle(document.documentElement);
    const colours = [style.getPropertyValue("--accent"), style.getPropertyValue("--ink-2")];
    for (const { gauge, canvas } of this.parts) {
      const [width, height] = [canvas.clientWidth, canvas.clientHeight];
      if (!width) continue;
      const ratio = devicePixelRatio || 1;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      const series = this.points.map((stats) => gauge.lines(stats));
      const top = Math.max(1e-9, ...series.flat().filter((value) => value !== null)) * 1.12;
      const span = Math.max(FIRST, series.length) - 1; // the first half minute fills the width, later points move closer
      const x = (index) => width - 3 - ((series.length - 1 - index) * (width - 6)) / span;
      const y = (value) => height - 2 - (Math.min(value, top) / top) * (height - 6);
      (series[0] ?? []).forEach((_, line) => {
        const dots = series.map((values, index) => [x(index), values[line]]).filter(([, value]) => value !== null);
        if (!dots.length) return;
        pen.beginPath();
        dots.forEach(([at, value], index) => (index ? pen.lineTo(at, y(value)) : pen.moveTo(at, y(value))));
        pen.lineWidth = 1.6;
        pen.lineJoin = "round";
        pen.strokeStyle = colours[line];
        pen.stroke();
        const [at, value] = dots.at(-1);
        if (line === 0) {
          pen.lineTo(at, height);
          pen.lineTo(dots[0][0], height);
          pen.globalAlpha = 0.13;
          pen.fillStyle = colours[0];
          pen.fill();
          pen.globalAlpha = 1;
        }
        pen.beginPath();
        pen.arc(at, y(value), 2.6, 0, 7);
        pen.fillStyle = colours[line];
        pen.fill();
      });
    }
  }
}
