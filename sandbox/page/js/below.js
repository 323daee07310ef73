// The rows below the first: a strip each. A strip about another title than before fades in; else its posters stay where they are.

import { element, words } from "./dom.js";
import { poster } from "./poster.js";

export class Below {
  constructor(place, { onPlay }) {
    this.place = place;
    this.onPlay = onPlay;
    this.strips = new Map();
  }

  clear() {
    this.strips.clear();
    this.place.replaceChildren();
  }

  show(rows) {
    const focused = document.activeElement;
    const strip = focused.closest?.(".strip");
    const at = strip ? [...strip.querySelectorAll("button")].indexOf(focused) : -1;
    const before = this.strips;
    this.strips = new Map(rows.map((row) => [row.row, this.#strip(row, before.get(row.row))]));
    this.place.replaceChildren(...[...this.strips.values()].map((each) => each.node));
    if (at < 0) return;
    // The title that was played has left: whoever goes by keyboard goes on from the same place.
    const buttons = this.strips.get(strip.dataset.row)?.node.querySelectorAll("button") ?? [];
    buttons[Math.min(at, buttons.length - 1)]?.focus({ preventScroll: true });
  }

  sending(id, on) {
    this.place.querySelectorAll(`[data-item="${CSS.escape(id)}"]`).forEach((node) => node.classList.toggle("sending", on));
  }

  #strip(row, before) {
    const fresh = before?.heading !== row.heading;
    const node = fresh ? this.#section(row) : before.node;
    const kept = new Map([...node.querySelectorAll("li")].map((item) => [item.dataset.item, item]));
    node.querySelector("ol").replaceChildren(...row.tiles.map((tile) => kept.get(tile.item_id) ?? this.#tile(tile, row.row)));
    return { heading: row.heading, node };
  }

  #section(row) {
    const id = `below-${row.row}`;
    const heading = element("h2", { id });
    const [before, after] = row.about ? row.heading.split(row.about.title, 2) : [row.heading, ""];
    heading.append(before, ...(row.about ? [element("em", { text: row.about.title }), after ?? ""] : []));
    return element("section", { className: "strip", "data-row": row.row, "data-about": row.about?.item_id, "aria-labelledby": id },
      element("header", { className: "section-head" }, heading), element("ol", { className: "strip-tiles" }));
  }

  #tile(tile, name) {
    const play = element("button", { className: "strip-play", type: "button", "aria-label": `Play ${tile.title}` }, poster(tile));
    play.addEventListener("click", () => this.onPlay(tile, name));
    return element("li", { "data-item": tile.item_id, title: `${tile.title}\n${tile.topics.map(words).join(" · ")}` }, play);
  }
}
