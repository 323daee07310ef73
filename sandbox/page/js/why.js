// "Why this tile": where the candidate came from, and the plays that its score is made of.

import { element, length, words } from "./dom.js";
import { poster } from "./poster.js";

const SOURCES = {
  als: ["From your plays", "Viewers whose plays resemble yours go on to this title."],
  popular: ["Popular", "There are few plays of yours to go by yet, so what many watch counts for more."],
  trending: ["Trending tonight", "Many viewers are starting it right now."],
  cowatch: ["Watched together", "Viewers who watched what you just did often go on to this."],
  sequence: ["Comes next", "In the order in which you watched lately, this is what comes next for others."],
  again: ["Once more", "You have watched it before, and viewers here do come back to titles."],
  explore: ["To find out", "Few have watched it yet; it is close to what you play."],
  new: ["New", "It has just arrived, and its topics and makers are close to what you play."],
  content: ["Close in kind", "Its topics and makers are those of titles that you play."],
  blend: ["From your plays and everybody’s", "Your plays say something already; what many watch fills in the rest."],
};

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

// The score is the plays' contributions plus, for a viewer with few plays, a share for what everybody watches.
function whole(sum, score) {
  const rest = score - sum;
  if (Math.abs(rest) < 0.0005) return `These contributions sum to the score, ${score.toFixed(3)}.`;
  return `These contributions sum to ${signed(sum)} of the score ${score.toFixed(3)}; other plays and popularity make ${signed(rest)}.`;
}

export function showWhy(dialog, body, explanation) {
  const { tile, position, reasons, note } = explanation;
  const [heading, sentence] = SOURCES[tile.source] ?? [words(tile.source || "Not in the row"), ""];
  const strongest = Math.max(1e-9, ...reasons.map((reason) => Math.abs(reason.contribution)));
  const sum = reasons.reduce((total, reason) => total + reason.contribution, 0);
  const title = element("h2", { id: "why-title", text: tile.title });
  body.replaceChildren(
    poster(tile),
    title,
    element("p", { className: "facts", text: [tile.topics.map(words).join(", "), tile.creators.join(" & "), length(tile.duration_ms)].filter(Boolean).join("  ·  ") }),
    element("p", { className: "source" }, element("b", { text: position ? `Number ${position}. ${heading}` : heading }), note || sentence),
  );
  if (reasons.length) {
    body.append(element("h3", { text: "Because you played" }), element("ul", { className: "reasons" }, ...reasons.map((reason) => {
      const bar = element("i");
      bar.style.setProperty("--share", (Math.abs(reason.contribution) / strongest).toFixed(3));
      return element("li", { className: reason.contribution < 0 ? "against" : "" }, poster(reason.tile, { mini: true }),
        element("span", { text: reason.tile.title }), element("span", { className: "amount", text: signed(reason.contribution) }),
        element("span", { className: "track", "aria-hidden": "true" }, bar));
    })), element("p", { className: "sum", text: whole(sum, tile.score) }));
  }
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

// A press beside the panel closes it, as Escape does.
export function closeOutside(dialog) {
  dialog.addEventListener("pointerdown", (event) => {
    const box = dialog.getBoundingClientRect();
    if (event.target === dialog && event.clientX < box.left) dialog.close();
  });
}
