// The buttons that break something on purpose: what happens meanwhile, and the measured verdict.

import { element, number, svg } from "./dom.js";

const KINDS = {
  kill: ["Kill the updater", "SIGKILL, in the middle of a batch. A new process takes over where the marker stands."],
  poison: ["Send poison", "Six records that can never be applied, between everybody’s plays. They become dead letters."],
  burst: ["Burst", "Thousands of viewers press play at the same moment. The lag rises, and falls to nothing."],
  generation: ["New generation", "A whole nightly run while everybody watches on: train, publish, swap, rebuild every row."],
};
const FLAT = 200; // records: a fraction of a second
const RUNNING = "Under way …";

export class Trials {
  constructor(section, root, { press, onSay }) {
    Object.assign(this, { section, press, onSay });
    this.cards = new Map(Object.entries(KINDS).map(([name, kind]) => [name, this.#card(name, kind)]));
    root.replaceChildren(...[...this.cards.values()].map((card) => card.node));
  }

  // `views` as the server tells them whenever something changes; none: this page owns nothing that it could break.
  show(views) {
    this.section.hidden = !views.length;
    for (const view of views) {
      const card = this.cards.get(view.name);
      if (card) this.#draw(card, view);
    }
  }

  #card(name, [title, what]) {
    const button = element("button", { type: "button", className: "quiet", "aria-describedby": `trial-${name}-what`, text: title });
    const card = { title, button, shown: null, verdict: element("p", { className: "verdict" }), refusal: element("p", { className: "refusal", role: "alert" }) };
    card.figures = element("dl", { className: "figures" });
    card.curve = svg("svg", { viewBox: "0 0 200 40", preserveAspectRatio: "none", "aria-hidden": "true", class: "curve" });
    card.scale = element("p", { className: "scale" });
    card.steps = element("ol", { className: "steps", tabindex: 0, "aria-label": `${title}: what happened` }); // scrolls, so it takes the focus
    card.log = element("details", { hidden: true, open: name === "poison" }, element("summary", { text: "What happened" }), card.steps);
    card.now = element("p", { className: "now" });
    card.node = element("article", { className: "trial", "data-action": name, "data-state": "idle", "aria-label": title },
      button, element("p", { className: "what", id: `trial-${name}-what`, text: what }),
      card.curve, card.scale, card.now, card.figures, card.verdict, card.refusal, card.log);
    button.addEventListener("click", () => this.#press(name, card));
    return card;
  }

  async #press(name, card) {
    card.refusal.textContent = "";
    try {
      this.#draw(card, await this.press(name));
      this.onSay(`${card.title}: under way.`);
    } catch (error) {
      card.refusal.textContent = error.message;
    }
  }

  #draw(card, view) {
    const before = card.shown;
    // The stream may have told of more by the time the press is answered.
    if (before && (view.number < before.number || (view.number === before.number && view.steps.length < before.steps.length))) return;
    card.shown = view;
    card.node.dataset.state = view.state;
    card.node.setAttribute("aria-busy", view.state === "running");
    card.now.textContent = view.state === "running" ? (view.steps.at(-1)?.text ?? RUNNING) : "";
    card.figures.replaceChildren(...view.figures.map((figure) => element("div", {}, element("dt", { text: figure.name }), element("dd", { text: figure.text }))));
    card.steps.replaceChildren(...view.steps.map((step) => element("li", {}, element("b", { text: `${step.at_s.toFixed(1)} s` }), ` ${step.text}`)));
    card.log.hidden = !view.steps.length;
    this.#plot(card, view.curve, view.state === "running");
    this.#judge(card, view);
    if (before?.state === "running" && view.state !== "running") {
      card.refusal.textContent = "";
      this.onSay(`${card.title}: ${view.message}`);
    }
  }

  #judge(card, { state, verdict, message }) {
    if (state !== "passed" && state !== "failed") return card.verdict.replaceChildren();
    if (!verdict) return card.verdict.replaceChildren(message);
    const wrong = verdict.unaccounted ? `, ${number(verdict.unaccounted)} unaccounted` : "";
    card.verdict.replaceChildren(
      element("b", { text: `${number(verdict.lost)} lost, ${number(verdict.doubled)} doubled${wrong}` }),
      element("span", { text: `${number(verdict.viewers)} viewers with ${number(verdict.plays)} plays, each compared with the log’s ${number(verdict.events)} events` }),
      ...verdict.problems.map((problem) => element("span", { className: "wrong", text: problem })));
  }

  // Records behind, from the press on. A handful is nothing, and is drawn as such.
  #plot({ curve, scale }, points, running) {
    const [last, most] = [Math.max(1e-9, points.at(-1)?.[0] ?? 0), Math.max(0, ...points.map(([, behind]) => behind))];
    const top = Math.max(FLAT, most);
    const path = points.map(([at, behind]) => `${((at / last) * 200).toFixed(1)},${(38 - (behind / top) * 34).toFixed(1)}`);
    const none = points.length < 2;
    curve.classList.toggle("empty", none);
    scale.textContent = none ? "" : `records behind: ${running ? `${number(points.at(-1)[1])} now, ` : ""}at most ${number(most)}`;
    curve.replaceChildren(...(none ? [] : [
      svg("polygon", { points: `${path[0].split(",")[0]},40 ${path.join(" ")} 200,40` }), svg("polyline", { points: path.join(" ") })]));
  }
}
