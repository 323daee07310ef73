// Wiring: one viewer at a time, their two rows, plays, and the stream of what happens.

import * as api from "./api.js";
import { Below } from "./below.js";
import { byId, element, milliseconds, words } from "./dom.js";
import { Instruments } from "./instruments.js";
import { Picker } from "./picker.js";
import { hues, poster } from "./poster.js";
import { Row, showLadder } from "./row.js";
import { Stopwatch } from "./stopwatch.js";
import { Trials } from "./trials.js";
import { closeOutside, showWhy } from "./why.js";

const ENDINGS = { complete: "watched", stop: "stopped", skip: "skipped", start: "started" };
const state = { view: null, stop: () => {}, busy: false };

const row = new Row(byId("tiles"), { onPlay: (tile) => press(tile, mode(), state.view.live), onSkip: (tile) => press(tile, "skip", state.view.live), onWhy: why });
const below = new Below(byId("below"), { onPlay: (tile, name) => press(tile, mode(), state.view.live.below.find((each) => each.row === name)) });
const stopwatch = new Stopwatch(byId("stopwatch"), byId("stopwatch-ms"), byId("stopwatch-legs"), byId("stopwatch-note"));
const instruments = new Instruments(byId("gauges"), byId("ledger"), byId("provenance"));
const trials = new Trials(byId("breaking"), byId("trials"), { press: api.act, onSay: (text) => say(text) });
const picker = new Picker(byId("picker-input"), byId("picker-list"), { search: api.searchViewers, onPick: choose, onProblem: problem });

const mode = () => (byId("private-mode").checked ? "private" : "play");
const say = (text) => (byId("announcer").textContent = text);

function problem(error) {
  byId("problem").textContent = error ? error.message : "";
  byId("problem").hidden = !error;
}

async function choose(viewer) {
  try {
    const view = await api.readViewer(viewer);
    problem(null);
    state.stop();
    state.view = view;
    history.replaceState(null, "", `#${encodeURIComponent(viewer)}`);
    picker.set(view.viewer);
    stopwatch.reset();
    row.clear();
    below.clear();
    const given = view.viewer.name.split(" ")[0];
    byId("greeting").replaceChildren("Good evening, ", element("em", { text: `${given}.` }));
    byId("viewer-taste").textContent = view.viewer.taste.split(", ").join(" · ");
    document.title = `${given}’s row · Nearline`;
    draw(view.live);
    state.stop = api.follow(viewer, { onStats: (stats) => instruments.show(stats), onRow: take, onActions: (views) => trials.show(views), onState: link });
  } catch (error) {
    problem(error);
  }
}

function link(name, message) {
  byId("link-state").dataset.state = name;
  byId("link-state").querySelector("b").textContent = name === "live" ? "live" : "reconnecting";
  if (message) problem(new Error(message));
  else if (name === "live" && !state.busy) problem(null);
}

// A row from the stream or from a play's answer, whichever comes first; older ones are dropped.
function take(live) {
  const shown = state.view?.live;
  if (!shown || live.viewer !== shown.viewer || live.row_id === shown.row_id || live.computed_at_ms < shown.computed_at_ms) return null;
  return draw(live);
}

function draw(live) {
  const { view } = state;
  view.live = live;
  const changes = row.show(live, view.last_night);
  below.show(live.below);
  state.drawn = { row_id: live.row_id, at: performance.now() };
  const [a, b] = hues(live.tiles[0]);
  document.documentElement.style.setProperty("--hue-a", a);
  document.documentElement.style.setProperty("--hue-b", b);
  byId("row-facts").textContent = live.computed_at_ms ? `${live.default ? "the default row, " : ""}written ${new Date(live.computed_at_ms).toLocaleTimeString("en-GB")}` : "";
  ladder();
  return changes;
}

function ladder() {
  const { view } = state;
  showLadder(byId("ladder"), view.last_night, view.live, new Set(view.recent.map((play) => play.tile.item_id)));
  const plays = view.recent.map((play) => element("li", { "data-item": play.tile.item_id }, poster(play.tile, { mini: true }),
    element("span", {}, element("b", { text: play.tile.title }), element("small", { text: [ENDINGS[play.ending] ?? play.ending, words(play.tile.topics[0] ?? "")].filter(Boolean).join(" · ") }))));
  byId("reel").replaceChildren(...(plays.length ? plays : [element("li", { className: "nothing", text: "Nothing yet tonight." })]));
}

// What a player reports with a play: the row that it came from, as it is now, and the position there.
function placeOf(tile, { row_id, tiles }) {
  const position = tiles.findIndex((each) => each.item_id === tile.item_id);
  return position < 0 ? {} : { row_id, row_position: position };
}

async function press(tile, kind, from) {
  if (state.busy) return;
  const { viewer } = state.view.viewer;
  state.busy = true;
  row.sending(tile.item_id, true);
  below.sending(tile.item_id, true);
  stopwatch.start(tile.title);
  try {
    const before = state.view.live;
    const outcome = await api.play(viewer, tile.item_id, kind, placeOf(tile, from));
    if (state.view.viewer.viewer !== viewer) return;
    state.view.recent = outcome.recent.length ? outcome.recent : state.view.recent;
    const old = new Map(before.tiles.map((each, index) => [each.item_id, index]));
    if (outcome.row) take(outcome.row);
    // The stream may have brought the row before this answer did.
    stopwatch.finish(outcome, tile.title, outcome.row?.row_id === state.drawn.row_id ? state.drawn.at : performance.now());
    ladder();
    problem(null);
    const changes = { fresh: 0, moved: 0 };
    state.view.live.tiles.slice(0, 12).forEach((each, index) => {
      if (!old.has(each.item_id)) changes.fresh += 1;
      else if (old.get(each.item_id) !== index) changes.moved += 1;
    });
    if (outcome.total_ms === null) say(outcome.message || "No new row came.");
    else say(`Row rewritten in ${milliseconds(outcome.total_ms)} milliseconds. ${changes.moved} titles moved, ${changes.fresh} are new. First is ${state.view.live.tiles[0]?.title ?? "empty"}.`);
  } catch (error) {
    stopwatch.fail();
    problem(error);
  } finally {
    row.sending(tile.item_id, false);
    below.sending(tile.item_id, false);
    state.busy = false;
  }
}

async function why(tile) {
  try {
    showWhy(byId("why"), byId("why-body"), await api.explain(state.view.viewer.viewer, tile.item_id));
  } catch (error) {
    problem(error);
  }
}

async function anyone() {
  try {
    const others = (await api.searchViewers("")).filter((viewer) => viewer.viewer !== state.view?.viewer.viewer);
    if (others.length) await choose(others[Math.floor(Math.random() * others.length)].viewer);
  } catch (error) {
    problem(error);
  }
}

byId("random-viewer").addEventListener("click", anyone);
closeOutside(byId("why"));
addEventListener("hashchange", () => choose(decodeURIComponent(location.hash.slice(1))));
addEventListener("pagehide", () => state.stop());
if (location.hash.length > 1) choose(decodeURIComponent(location.hash.slice(1)));
else anyone();
