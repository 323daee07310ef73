// The page's only way to the server.

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. It may be restarting; try again in a moment.");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? `The server answered ${answer.status}.`);
  return body;
}

const part = encodeURIComponent;

export const searchViewers = (q) => ask(`/api/viewers?q=${part(q)}`);
export const readViewer = (viewer) => ask(`/api/viewer/${part(viewer)}`);
export const explain = (viewer, item) => ask(`/api/explain/${part(viewer)}/${part(item)}`);
const send = (path, fields) =>
  ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(fields) });
// `place`: the row that the tile was in, and its position there, from 0.
export const play = (viewer, item, kind, place) => send("/api/play", { viewer, item_id: item, kind, ...place });
export const act = (action) => send("/api/action", { action });

// Stats once a second, the row and the buttons' doings whenever they change. Returns a function that closes the stream.
export function follow(viewer, { onStats, onRow, onActions, onState }) {
  const source = new EventSource(`/api/stream?viewer=${part(viewer)}`);
  source.addEventListener("open", () => onState("live"));
  source.addEventListener("stats", (event) => {
    onState("live");
    onStats(JSON.parse(event.data));
  });
  source.addEventListener("row", (event) => onRow(JSON.parse(event.data)));
  source.addEventListener("actions", (event) => onActions(JSON.parse(event.data)));
  source.addEventListener("away", (event) => onState("away", JSON.parse(event.data).error));
  source.addEventListener("error", () => onState("away"));
  return () => source.close();
}
