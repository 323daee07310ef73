// From the press of play to the rewritten row: runs while waiting, then settles on what was measured and where it went.

import { element, milliseconds } from "./dom.js";

export class Stopwatch {
  constructor(root, output, legs, note) {
    Object.assign(this, { root, output, legs, note });
  }

  reset() {
    cancelAnimationFrame(this.frame);
    this.root.dataset.state = "idle";
    this.output.textContent = "–";
    this.legs.replaceChildren();
    this.note.textContent = "Waiting for a play.";
  }

  start(title) {
    this.begun = performance.now();
    this.root.dataset.state = "running";
    this.legs.replaceChildren();
    this.note.textContent = `Playing ${title} …`;
    const tick = () => {
      this.output.textContent = milliseconds(performance.now() - this.begun);
      this.frame = requestAnimationFrame(tick);
    };
    cancelAnimationFrame(this.frame);
    tick();
  }

  // `outcome` as the server measured it; the last leg, until the row stood on the page at `seenAt`, is measured here.
  finish(outcome, title, seenAt) {
    cancelAnimationFrame(this.frame);
    if (outcome.total_ms === null) {
      this.root.dataset.state = "idle";
      this.output.textContent = "–";
      this.note.textContent = outcome.message || "No new row came.";
      return;
    }
    const seen = Math.max(0, seenAt - this.begun - outcome.total_ms);
    const legs = [...outcome.parts, { name: "on this page", ms: seen }];
    const whole = legs.reduce((sum, leg) => sum + leg.ms, 0) || 1;
    this.root.dataset.state = "done";
    this.output.textContent = milliseconds(outcome.total_ms);
    this.legs.replaceChildren(...legs.map((leg, index) => {
      const node = element("li", {}, element("b", { text: `${milliseconds(leg.ms)} ms` }), leg.name);
      node.style.setProperty("--share", Math.max(0.12, leg.ms / whole).toFixed(3));
      node.style.setProperty("--tone", index === legs.length - 1 ? 0.38 : (1 - index * 0.13).toFixed(2));
      node.style.setProperty("--at", index);
      return node;
    }));
    this.note.textContent = `${title}: the new row stood here after ${milliseconds(outcome.total_ms + seen)} ms.`;
  }

  fail() {
    this.reset();
    this.note.textContent = "The play was not sent.";
  }
}
