// Poster art from nothing but a title: each topic has a palette and a motif, the item's id is the seed. The same title
// always gets the same poster, on every machine.

import { element, svg } from "./dom.js";

// topic → [hue of the ground, hue of the light, motifs, type styles, mood]
const TOPICS = {
  drama: [28, 62, "horizon hills embrace", "serif italic", "dusk"],
  comedy: [68, 25, "confetti bubbles plate", "condensed sans", "day"],
  thriller: [235, 30, "beams skyline rings", "condensed wide", "night"],
  crime: [255, 85, "skyline beams horizon", "wide serif condensed", "night"],
  "science-fiction": [275, 200, "planet lanes waves", "wide sans", "night"],
  fantasy: [305, 170, "peaks thorns planet", "italic serif", "dusk"],
  romance: [8, 45, "embrace horizon waves", "italic serif", "day"],
  horror: [20, 25, "thorns rings embrace", "condensed serif", "black"],
  adventure: [45, 220, "dunes peaks road", "condensed wide", "day"],
  nature: [155, 110, "waves horizon peaks", "serif sans", "dusk"],
  history: [75, 55, "columns horizon dunes", "serif wide", "sepia"],
  "true-crime": [240, 95, "rings beams skyline", "sans condensed", "black"],
  music: [330, 290, "bars waves embrace planet", "condensed wide sans", "night"],
  sport: [145, 95, "lanes confetti bars", "condensed sans", "day"],
  food: [40, 120, "plate bubbles hills", "italic sans", "day"],
  travel: [215, 60, "road dunes skyline", "wide serif", "dusk"],
  family: [190, 75, "hills bubbles confetti", "sans serif", "day"],
  animation: [175, 350, "bubbles hills planet", "sans condensed", "day"],
};
const OTHER = [280, 60, "horizon", "serif", "dusk"];

// mood → lightness and chroma of [deep ground, ground, middle, bright, light]
const MOODS = {
  night: [[0.17, 0.05], [0.3, 0.09], [0.44, 0.12], [0.62, 0.15], [0.86, 0.12]],
  dusk: [[0.22, 0.05], [0.39, 0.09], [0.54, 0.11], [0.7, 0.13], [0.9, 0.09]],
  day: [[0.34, 0.1], [0.55, 0.14], [0.66, 0.15], [0.78, 0.14], [0.93, 0.07]],
  black: [[0.1, 0.01], [0.17, 0.03], [0.34, 0.12], [0.5, 0.18], [0.8, 0.08]],
  sepia: [[0.25, 0.03], [0.42, 0.05], [0.56, 0.07], [0.72, 0.08], [0.9, 0.05]],
};

export const hues = (tile) => (TOPICS[tile?.topics?.[0]] ?? OTHER).slice(0, 2);

function seedOf(text) {
  let hash = 2166136261;
  for (const character of text) hash = Math.imul(hash ^ character.codePointAt(0), 16777619);
  return hash >>> 0;
}

// mulberry32: a small generator; posters need variety, not quality.
function dice(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

const W = 200;
const H = 300;
const choice = (options, seed) => { const all = options.split(" "); return all[seed % all.length]; };
const between = (roll, low, high) => low + (high - low) * roll();
const circle = (cx, cy, r, rest) => svg("circle", { cx, cy, r, ...rest });
const path = (d, rest) => svg("path", { d, ...rest });

function ridge(roll, y, height, steps) {
  let d = `M0 ${H}V${y}`;
  for (let i = 1; i <= steps; i += 1) {
    const x = (W * i) / steps;
    d += `L${(x - W / steps / 2).toFixed(1)} ${(y - between(roll, 0.3, 1) * height).toFixed(1)}L${x.toFixed(1)} ${(y + between(roll, -0.2, 0.3) * height).toFixed(1)}`;
  }
  return `${d}V${H}Z`;
}

function swell(roll, y, height) {
  const bend = between(roll, -1, 1) * height;
  return `M0 ${y}C${W * 0.3} ${y - bend} ${W * 0.65} ${y + bend} ${W} ${y - bend * 0.4}V${H}H0Z`;
}

// Each motif draws into the upper two thirds; the title takes the rest. `c` is [deep, ground, middle, bright, light].
const MOTIFS = {
  horizon: (roll, c) => {
    const x = between(roll, 55, 145);
    const y = between(roll, 105, 150);
    return [circle(x, y, between(roll, 34, 60), { fill: c[4] }), ...[0, 1, 2, 3].map((i) => path(swell(roll, y + 8 + i * 34, 9 + i * 4), { fill: c[Math.max(0, 2 - i)], opacity: 0.92 }))];
  },
  confetti: (roll, c) => [
    circle(between(roll, 30, 80), between(roll, 60, 100), between(roll, 46, 66), { fill: c[4] }),
    svg("rect", { x: between(roll, 90, 120), y: between(roll, 20, 60), width: 92, height: 92, fill: c[0], transform: `rotate(${between(roll, 8, 40)} 140 90)` }),
    path(`M${between(roll, 20, 60)} 200l60-84 52 92z`, { fill: c[3] }),
    ...Array.from({ length: 9 }, () => circle(between(roll, 8, 192), between(roll, 8, 190), between(roll, 2, 6), { fill: roll() < 0.5 ? c[4] : c[0] })),
  ],
  beams: (roll, c) => {
    const x = between(roll, 30, 170);
    return [
      ...[0, 1, 2].map((i) => path(`M${x} 20L${-60 + i * 100 + between(roll, 0, 30)} ${H}h${between(roll, 30, 70)}Z`, { fill: c[3], opacity: 0.22 + i * 0.12 })),
      circle(x, 20, 9, { fill: c[4] }),
      path(`M${x - 4} 196c-9-2-9-20 0-22 9 2 9 20 0 22m-13 60c0-40 4-58 13-58s14 18 14 58z`, { fill: c[0] }),
    ];
  },
  skyline: (roll, c) => {
    const parts = [circle(between(roll, 40, 160), between(roll, 50, 90), between(roll, 18, 30), { fill: c[4] })];
    for (const [layer, tone] of [[0, 2], [1, 0]]) {
      let x = -8;
      while (x < W) {
        const width = between(roll, 18, 38);
        const y = between(roll, 110, 170) + layer * 32;
        parts.push(svg("rect", { x, y, width: width + 1, height: H - y, fill: c[tone], opacity: layer ? 1 : 0.75 }));
        if (layer) for (let k = 0; k < 3; k += 1) if (roll() < 0.55) parts.push(svg("rect", { x: x + 5 + roll() * (width - 12), y: y + 8 + k * 13, width: 4, height: 5, fill: c[4], opacity: 0.9 }));
        x += width;
      }
    }
    return parts;
  },
  planet: (roll, c) => {
    const [x, y, r] = [between(roll, 60, 140), between(roll, 80, 130), between(roll, 40, 62)];
    const tilt = between(roll, -32, 32);
    return [
      ...Array.from({ length: 34 }, () => circle(roll() * W, roll() * H, between(roll, 0.4, 1.5), { fill: c[4], opacity: 0.5 + roll() / 2 })),
      circle(x, y, r, { fill: c[3] }),
      path(`M${x - r} ${y}a${r} ${r} 0 0 0 ${2 * r} 0a${r} ${r * 0.42} 0 0 1 ${-2 * r} 0`, { fill: c[0], opacity: 0.5, transform: `rotate(${tilt + 24} ${x} ${y})` }),
      svg("ellipse", { cx: x, cy: y, rx: r * 1.7, ry: r * 0.36, fill: "none", stroke: c[4], "stroke-width": 2.2, opacity: 0.9, transform: `rotate(${tilt} ${x} ${y})` }),
    ];
  },
  peaks: (roll, c) => [
    circle(between(roll, 40, 160), between(roll, 46, 84), between(roll, 15, 27), { fill: c[4] }),
    ...[0, 1, 2].map((i) => path(ridge(roll, 136 + i * 38, 72 - i * 16, 2 + i), { fill: c[2 - i], opacity: i ? 1 : 0.8 })),
    path("M30 66q6-7 12 0q6-7 12 0M58 84q5-6 10 0q5-6 10 0", { fill: "none", stroke: c[4], "stroke-width": 1.8 }),
  ],
  embrace: (roll, c) => {
    const y = between(roll, 96, 130);
    const r = between(roll, 46, 60);
    const gap = between(roll, 22, 36);
    return [circle(100 - gap, y, r, { fill: c[4] }), circle(100 + gap, y + between(roll, -16, 16), r, { fill: c[0], opacity: 0.55 }), circle(100 + gap, y, r * 0.4, { fill: c[3], opacity: 0.85 })];
  },
  thorns: (roll, c) => [
    circle(between(roll, 70, 130), between(roll, 84, 120), between(roll, 36, 54), { fill: c[3] }),
    ...Array.from({ length: 15 }, (_, i) => {
      const x = i * 15 - 6;
      const tip = between(roll, 60, 200);
      return path(`M${x} ${H}L${x + between(roll, -8, 18)} ${tip}L${x + 15} ${H}Z`, { fill: c[0] });
    }),
  ],
  dunes: (roll, c) => [
    circle(between(roll, 50, 150), between(roll, 70, 96), between(roll, 24, 40), { fill: c[4] }),
    ...[0, 1, 2, 3].map((i) => path(swell(roll, 120 + i * 34, 34), { fill: [c[3], c[2], c[1], c[0]][i] })),
    path(`M96 ${H}C70 240 140 210 ${between(roll, 90, 120)} 150`, { fill: "none", stroke: c[4], "stroke-width": 2, "stroke-dasharray": "1 7", "stroke-linecap": "round" }),
  ],
  waves: (roll, c) => {
    const [x, y] = [between(roll, 20, 180), between(roll, 30, 120)];
    return Array.from({ length: 11 }, (_, i) => circle(x, y, 196 - i * 18, { fill: c[[1, 2, 0, 3, 1][i % 5]], opacity: 0.5, stroke: c[4], "stroke-width": 0.5, "stroke-opacity": 0.5 }));
  },
  columns: (roll, c) => {
    const n = 3 + Math.floor(roll() * 3);
    const step = 156 / n;
    return [
      circle(100, 116, 66, { fill: c[4], opacity: 0.85 }),
      svg("rect", { x: 14, y: 66, width: 172, height: 11, fill: c[0] }),
      path("M10 66L100 26L190 66Z", { fill: c[0] }),
      ...Array.from({ length: n }, (_, i) => svg("rect", { x: 22 + i * step + step * 0.18, y: 82, width: step * 0.6, height: 112, fill: c[0] })),
      svg("rect", { x: 10, y: 198, width: 180, height: 10, fill: c[0] }),
    ];
  },
  rings: (roll, c) => {
    const [x, y] = [between(roll, 70, 130), between(roll, 86, 116)];
    return Array.from({ length: 10 }, (_, i) => svg("ellipse", { cx: x, cy: y, rx: 7 + i * 7.2, ry: 10 + i * 9.4, fill: "none", stroke: i === 3 ? c[4] : c[3], "stroke-width": 2.6, "stroke-dasharray": `${between(roll, 30, 90)} ${between(roll, 5, 16)}`, transform: `rotate(${between(roll, -20, 20)} ${x} ${y})` }));
  },
  bars: (roll, c) => Array.from({ length: 13 }, (_, i) => {
    const tall = between(roll, 20, 128) * (1 - Math.abs(i - 6) / 11);
    return svg("rect", { x: 13 + i * 13.6, y: 106 - tall / 1.5, width: 7.4, height: tall * 1.35, rx: 3.7, fill: c[i % 4 === 2 ? 4 : 3], opacity: 0.92 });
  }),
  lanes: (roll, c) => [
    ...Array.from({ length: 7 }, (_, i) => circle(between(roll, 204, 214), 214, 204 - i * 25, { fill: i % 2 ? c[1] : c[2], stroke: c[4], "stroke-width": 1.6 })),
    circle(between(roll, 42, 72), between(roll, 60, 90), 15, { fill: c[4] }),
  ],
  plate: (roll, c) => {
    const y = between(roll, 100, 124);
    return [circle(100, y, 76, { fill: c[4] }), circle(100, y, 56, { fill: c[3], opacity: 0.5 }), ...Array.from({ length: 6 }, () => svg("ellipse", { cx: 100 + between(roll, -30, 30), cy: y + between(roll, -30, 30), rx: between(roll, 8, 21), ry: between(roll, 6, 13), fill: c[[0, 1, 2][Math.floor(roll() * 3)]], transform: `rotate(${between(roll, 0, 180)} 100 ${y})` }))];
  },
  road: (roll, c) => {
    const x = between(roll, 70, 130);
    return [circle(x, 108, between(roll, 30, 48), { fill: c[4] }), path(ridge(roll, 118, 34, 4), { fill: c[2] }), svg("rect", { x: 0, y: 138, width: W, height: 162, fill: c[0] }), path(`M${x - 3} 138L-20 ${H}H220L${x + 3} 138Z`, { fill: c[1] }), path(`M${x} 142L${100 + (x - 100) * 0.3} ${H}`, { stroke: c[4], "stroke-width": 3, "stroke-dasharray": "4 9" })];
  },
  hills: (roll, c) => [
    circle(between(roll, 30, 170), between(roll, 44, 74), between(roll, 20, 32), { fill: c[4] }),
    ...[0, 1, 2].map((i) => svg("ellipse", { cx: between(roll, 10, 190), cy: 220 + i * 26, rx: between(roll, 110, 170), ry: 96, fill: c[2 - i] })),
    ...Array.from({ length: 3 }, (_, i) => svg("ellipse", { cx: 40 + i * 56 + between(roll, -12, 12), cy: between(roll, 60, 120), rx: 10, ry: 13, fill: c[i === 1 ? 0 : 4], opacity: 0.95 })),
  ],
  bubbles: (roll, c) => Array.from({ length: 11 }, (_, i) => circle(between(roll, 0, W), between(roll, 0, 210), between(roll, 10, 52) * (i < 3 ? 1.2 : 0.7), { fill: c[[4, 3, 0, 2][i % 4]], opacity: 0.82 })),
};

let drawn = 0;

function art(tile) {
  const topic = TOPICS[tile.topics[0]] ?? OTHER;
  const seed = seedOf(tile.item_id);
  const roll = dice(seed);
  const turn = between(roll, -30, 30);
  const tones = MOODS[topic[4]].map(([light, chroma], i) => `oklch(${light} ${chroma} ${((i < 3 ? topic[0] : topic[1]) + turn + 360) % 360})`);
  drawn += 1;
  const [ground, veil] = [`g${drawn}`, `v${drawn}`];
  const stop = (offset, color, opacity = 1) => svg("stop", { offset, "stop-color": color, "stop-opacity": opacity });
  const top = seed % 5 === 0;
  return svg("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true", focusable: "false" },
    svg("defs", {},
      svg("linearGradient", { id: ground, x1: 0, y1: 0, x2: between(roll, -0.3, 0.3), y2: 1 }, stop(0, tones[1]), stop(0.55, tones[2]), stop(1, tones[0])),
      svg("linearGradient", { id: veil, x1: 0, y1: top ? 1 : 0, x2: 0, y2: top ? 0 : 1 }, stop(0.3, "#0b0910", 0), stop(0.66, "#0b0910", 0.46), stop(1, "#0b0910", 0.84))),
    svg("rect", { width: W, height: H, fill: `url(#${ground})` }),
    svg("g", top ? { transform: "translate(0 72)" } : {}, ...MOTIFS[choice(topic[2], seed >>> 8)](roll, tones)),
    svg("rect", { width: W, height: H, fill: `url(#${veil})` }));
}

export function poster(tile, { mini = false } = {}) {
  const topic = TOPICS[tile.topics[0]] ?? OTHER;
  const seed = seedOf(tile.item_id);
  const longest = Math.max(...tile.title.split(" ").map((word) => word.length));
  const classes = ["poster", `type-${choice(topic[3], seed >>> 16)}`, mini && "mini", (tile.title.length > 22 || longest > 9) && "long"];
  const place = seed % 5 === 0 ? "top" : seed % 3 === 0 ? "centre" : "";
  const node = element("span", { className: classes.filter(Boolean).join(" ") }, art(tile));
  if (!mini) {
    node.append(element("span", { className: `poster-text ${place}`, lang: "en" },
      element("span", { className: "poster-title", text: tile.title }),
      element("span", { className: "poster-credit", text: tile.creators[0] ?? "" })));
  } else node.setAttribute("aria-hidden", "true");
  return node;
}
