// The console. Everything it shows comes from this listener: pictures of the node as server-sent events, and a few
// questions when something is chosen. Texts of the mesh (names, tags) only ever become text nodes.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") element.addEventListener("click", value);
    else if (value !== undefined && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function bytes(count) {
  if (count === null || count === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  while (count >= 999.5 && at < units.length - 1) { count /= 1000; at += 1; }
  return `${at === 0 ? count : count.toPrecision(3)} ${units[at]}`;
}
const rate = (count) => (count > 0 ? `${bytes(count)}/s` : "–");
const seconds = (millis) => `${(millis / 1000).toFixed(2)} s`;
const short = (text) => (text.includes(":") ? text.slice(0, text.indexOf(":") + 13) : `…${text.slice(-8)}`);
const code = (text) => make("code", { title: text }, short(text));

/** Brings a list of elements up to date by key, so that focus and scroll stay where they are. */
function sync(parent, items, key, fresh, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let element = old.get(name);
    if (element) old.delete(name);
    else { element = fresh(item); element.dataset.key = name; }
    if (update) update(element, item);
    if (element !== place) parent.insertBefore(element, place);
    else place = place.nextElementSibling;
  }
  for (const left of old.values()) left.remove();
}

/** A table row whose cells are texts or elements; cells that are the same stay. */
function fill(row, cells) {
  cells.forEach((cell, at) => {
    const numeric = typeof cell === "object" && !(cell instanceof Node);
    const text = cell instanceof Node ? cell.outerHTML : numeric ? cell.number : String(cell);
    let td = row.children[at];
    if (!td) { td = make("td", numeric ? { class: "number" } : {}); row.append(td); }
    if (td.dataset.shown === text) return;
    td.dataset.shown = text;
    td.replaceChildren(cell instanceof Node ? cell : text);
  });
}

// Views

const VIEWS = ["mesh", "swarms", "images", "pulls", "queues"];
let view = "mesh";

function show(name, focus) {
  view = name;
  for (const other of VIEWS) {
    const chosen = other === name;
    $(other).hidden = !chosen;
    $(`tab-${other}`).setAttribute("aria-selected", chosen);
    $(`tab-${other}`).tabIndex = chosen ? 0 : -1;
  }
  if (focus) $(`tab-${name}`).focus();
  if (name === "images") listRepositories();
  if (picture) render();
  history.replaceState(null, "", `#${name}`);
}

for (const name of VIEWS) $(`tab-${name}`).addEventListener("click", () => show(name));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const number = Number(event.key);
  if (number >= 1 && number <= VIEWS.length) return show(VIEWS[number - 1], true);
  if (event.target.getAttribute?.("role") !== "tab") return;
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  const at = VIEWS.indexOf(view);
  if (event.key in steps) show(VIEWS[(at + steps[event.key] + VIEWS.length) % VIEWS.length], true);
  else if (event.key === "Home") show(VIEWS[0], true);
  else if (event.key === "End") show(VIEWS.at(-1), true);
  else return;
  event.preventDefault();
});

// Pictures

let picture = null;

function connect() {
  const source = new EventSource("api/v1/live");
  source.addEventListener("picture", (event) => {
    picture = JSON.parse(event.data);
    state("live", false);
    render();
  });
  // The browser tries again by itself, unless it was refused.
  source.addEventListener("error", () => {
    state(source.readyState === EventSource.CLOSED ? "refused: too many pages are watching" : "no connection", true);
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  });
}

function state(text, off) {
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").classList.toggle("off", off);
}

function render() {
  const { status } = picture;
  $("who").textContent = `${status.peer}  ·  zone ${status.zone}  ·  ${status.roles}  ·  ${status.version}`;
  ({ mesh: renderMesh, swarms: renderSwarms, pulls: renderPulls, queues: renderQueues })[view]?.();
}

// The mesh

function renderMesh() {
  const zones = new Map();
  for (const member of picture.members) {
    if (!zones.has(member.zone)) zones.set(member.zone, []);
    zones.get(member.zone).push(member);
  }
  const names = [...zones.keys()].sort();
  const map = $("map");
  const place = new Map();
  const alone = names.length === 1;
  names.forEach((name, at) => {
    // Two stand side by side, more on an ellipse from its top on.
    const angle = (names.length === 2 ? Math.PI : -Math.PI / 2) + (2 * Math.PI * at) / names.length;
    place.set(name, alone ? [450, 225] : [450 + 330 * Math.cos(angle), 220 + 128 * Math.sin(angle)]);
  });
  const places = [...place.values()];
  const nearest = Math.min(...places.map(([x, y], at) => Math.hypot(x - places.at(at - 1)[0], y - places.at(at - 1)[1])));
  const size = alone ? 150 : Math.max(30, Math.min(88, nearest * 0.3));
  const shapes = [];
  for (const flow of picture.traffic) {
    const [from, to] = [place.get(flow.from), place.get(flow.to)];
    if (!from || !to || flow.from === flow.to) continue;
    const moving = flow.bytes_per_sec > 0;
    const width = moving ? Math.min(10, 2 + Math.log10(1 + flow.bytes_per_sec / 1e5) * 2) : 1.5;
    // The two directions of a link bow to opposite sides.
    const [x, y] = [(from[0] + to[0]) / 2 + (to[1] - from[1]) * 0.18, (from[1] + to[1]) / 2 - (to[0] - from[0]) * 0.18];
    shapes.push(draw("path", { class: moving ? "flow moving" : "flow", d: `M${from} Q${x},${y} ${to}`, "stroke-width": width }));
    const label = [0.25 * from[0] + 0.5 * x + 0.25 * to[0], 0.25 * from[1] + 0.5 * y + 0.25 * to[1] - 6];
    shapes.push(draw("text", { class: "quiet", x: label[0], y: label[1] }, moving ? `${rate(flow.bytes_per_sec)} to ${flow.to}` : `${bytes(flow.bytes)} to ${flow.to}`));
  }
  for (const name of names) {
    const [x, y] = place.get(name);
    shapes.push(draw("circle", { class: "zone", cx: x, cy: y, r: size }));
    const members = zones.get(name).sort((one, two) => one.peer.localeCompare(two.peer));
    const columns = Math.ceil(Math.sqrt(members.length * 1.6));
    const gap = Math.min(24, (1.5 * size) / Math.max(columns, 1));
    const rows = Math.ceil(members.length / columns);
    members.forEach((member, at) => {
      const kind = member.roles.includes("origin") ? "origin" : member.roles.includes("gateway") ? "gateway" : "";
      const dot = draw("circle", {
        class: `node ${kind} ${member.own ? "own" : ""}`,
        cx: x + ((at % columns) - (Math.min(columns, members.length) - 1) / 2) * gap,
        cy: y + (Math.floor(at / columns) - (rows - 1) / 2) * gap,
        r: Math.max(2.5, gap / 3),
      });
      dot.append(draw("title", {}, `${member.peer}\n${member.roles}`));
      shapes.push(dot);
    });
    const inside = picture.traffic.find((flow) => flow.from === name && flow.to === name);
    shapes.push(draw("text", { x, y: y + size + 16 }, `${name} · ${members.length}`));
    if (inside?.bytes_per_sec > 0) shapes.push(draw("text", { class: "quiet inside", x, y: y - size + 24 }, `inside ${rate(inside.bytes_per_sec)}`));
  }
  map.replaceChildren(...shapes);
  $("map-note").textContent = `${picture.members_total} members heard of, ${picture.answered} of them say what they move. Orange: origins. Blue: gateways. Ringed: this one.`;
  const flows = [...picture.traffic].sort((one, two) => two.bytes_per_sec - one.bytes_per_sec || two.bytes - one.bytes);
  sync($("flow-rows"), flows, (flow) => `${flow.from} ${flow.to}`, () => make("tr"), (row, flow) =>
    fill(row, [flow.from, flow.to, { number: rate(flow.bytes_per_sec) }, { number: bytes(flow.bytes) }]));
  sync($("member-rows"), picture.members, (member) => member.peer, () => make("tr"), (row, member) =>
    fill(row, [code(member.peer), member.zone, member.roles, member.own ? "this one" : member.connected ? "connected" : "–",
      { number: bytes(member.received_bytes) }, { number: bytes(member.served_bytes) }, { number: String(member.swarms ?? "–") }]));
}

// Swarms

function paint(canvas, map) {
  const style = getComputedStyle(document.documentElement);
  const [filled, empty] = [style.getPropertyValue("--fill"), style.getPropertyValue("--empty")];
  const width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  const height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.fillStyle = empty;
  context.fillRect(0, 0, width, height);
  context.fillStyle = filled;
  const gap = map.length < width / 4 ? 1 : 0;
  [...map].forEach((digit, at) => {
    if (digit === "0") return;
    const [left, right] = [Math.floor((at * width) / map.length), Math.floor(((at + 1) * width) / map.length)];
    const level = Math.max(1, Math.round((height * Number(digit)) / 9));
    context.fillRect(left, height - level, Math.max(1, right - left - gap), level);
  });
}

function renderSwarms() {
  const { swarms } = picture;
  $("swarm-note").textContent = swarms.length === 0 ? "No blob is shared at the moment." :
    `${picture.swarms_total} ${picture.swarms_total === 1 ? "swarm" : "swarms"}. Each cell of a map is a piece, or some pieces, of the blob as it is here.`;
  sync($("swarm-cards"), swarms, (swarm) => swarm.digest,
    (swarm) => make("article", { class: "card", "aria-label": `swarm of ${swarm.digest}` },
      make("div", { class: "head" }, make("code", {}, swarm.digest), make("strong")),
      make("canvas", { role: "img" }), make("div", { class: "peers" })),
    (card, swarm) => {
      const share = swarm.pieces_total ? Math.floor((100 * swarm.pieces_have) / swarm.pieces_total) : 0;
      const doing = swarm.complete ? "complete, seeding" : swarm.searching ? "searching" : `${share} %`;
      const text = `${swarm.pieces_have} of ${swarm.pieces_total} pieces · ${bytes(swarm.size)} · ${doing}`;
      card.querySelector("strong").textContent = text;
      card.dataset.have = swarm.pieces_have;
      card.dataset.total = swarm.pieces_total;
      const canvas = card.querySelector("canvas");
      canvas.setAttribute("aria-label", text);
      paint(canvas, swarm.map);
      sync(card.querySelector(".peers"), swarm.peers, ([peer]) => peer,
        ([peer]) => make("span", {}, code(peer), make("progress", { max: 1, "aria-label": "pieces it has" }), make("small", { class: "quiet" })),
        (row, [, have, asked]) => {
          row.querySelector("progress").value = swarm.pieces_total ? have / swarm.pieces_total : 0;
          row.querySelector("small").textContent = asked ? `${asked} asked` : "";
        });
    });
}

// Images

async function ask(path) {
  const answer = await fetch(path);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? answer.statusText);
  return body;
}

const query = (values) => new URLSearchParams(values).toString();
const chosen = { repository: null, tag: null, pull: null };

function choices(list, items, key, content, choose) {
  sync(list, items, key, (item) => {
    const button = make("button", { type: "button", "aria-pressed": "false", onclick: () => {
      for (const other of list.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
      choose(item);
    } }, ...content(item));
    return make("li", {}, button);
  });
}

function failed(place, error) {
  place.replaceChildren(make("p", { class: "quiet" }, `Not to be had: ${error.message}`));
}

async function listRepositories() {
  try {
    const names = await ask("api/v1/repositories");
    choices($("repositories"), names, (name) => name, (name) => [name], listTags);
    if (names.length === 0) $("repositories").replaceChildren(make("li", { class: "quiet" }, "Nothing was pushed yet."));
  } catch (error) { failed($("repositories"), error); }
}

async function listTags(repository) {
  chosen.repository = repository;
  $("image").replaceChildren();
  try {
    const tags = await ask(`api/v1/tags?${query({ repository })}`);
    if (chosen.repository !== repository) return;
    $("tags").replaceChildren();
    choices($("tags"), tags, (tag) => tag.name, (tag) => [tag.name, make("small", {}, short(tag.digest))],
      (tag) => showImage(repository, tag.digest, `${repository}:${tag.name}`));
    if (tags.length === 0) $("tags").replaceChildren(make("li", { class: "quiet" }, "No tags."));
  } catch (error) { failed($("tags"), error); }
}

async function showImage(repository, digest, name) {
  $("image-title").textContent = name;
  try {
    const { manifest, referrers } = await ask(`api/v1/image?${query({ repository, digest })}`);
    const parts = [];
    parts.push(make("dl", {}, make("dt", {}, "digest"), make("dd", {}, make("code", {}, digest)),
      make("dt", {}, "media type"), make("dd", {}, manifest.mediaType ?? "not stated")));
    const rows = (title, list, link) => {
      if (!Array.isArray(list) || list.length === 0) return;
      const body = make("tbody");
      for (const entry of list) {
        const platform = entry.platform ? `${entry.platform.os}/${entry.platform.architecture}` : entry.mediaType ?? entry.media_type ?? "";
        const cell = link ? make("button", { type: "button", onclick: () => showImage(repository, entry.digest, short(entry.digest)) }, short(entry.digest)) : code(entry.digest);
        body.append(make("tr", {}, make("td", {}, cell), make("td", {}, entry.artifact_type ?? platform), make("td", { class: "number" }, bytes(entry.size))));
      }
      parts.push(make("h2", {}, title), make("div", { class: "wide" }, make("table", {}, body)));
    };
    rows("Platforms", manifest.manifests, true);
    rows("Layers", manifest.layers, false);
    rows("Referrers", referrers, true);
    $("image").replaceChildren(...parts);
  } catch (error) { failed($("image"), error); }
}

// Pulls

function renderPulls() {
  const { pulls } = picture;
  choices($("pull-list"), pulls, (pull) => pull.digest,
    (pull) => [make("code", {}, short(pull.digest)), make("small", {})],
    (pull) => { chosen.pull = pull.digest; explain(); });
  for (const item of $("pull-list").children) {
    const pull = pulls.find((other) => other.digest === item.dataset.key);
    const took = pull.completed_ms === null ? "under way" : `in ${seconds(Math.max(0, pull.completed_ms - pull.started_ms))}`;
    const text = pull.failed ? `failed: ${pull.failed}` : `${bytes(pull.size)} ${took}`;
    const small = item.querySelector("small");
    if (small.textContent !== text) small.textContent = text;
  }
  explain();
}

const NAMES = { lookup: "lookup", seeder: "waiting for seeders", own_link: "own link", backend: "own backend", disk: "disk" };

function strip(shares) {
  const total = shares.reduce((sum, [, value]) => sum + value, 0) || 1;
  const svg = draw("svg", { viewBox: "0 0 1000 22", preserveAspectRatio: "none", role: "img", "aria-label": shares.map(([name, value]) => `${name} ${Math.round((100 * value) / total)} %`).join(", ") });
  let at = 0;
  shares.forEach(([, value], index) => {
    const width = (1000 * value) / total;
    svg.append(draw("rect", { class: `p${index % 6}`, x: at, y: 0, width, height: 22 }));
    at += width;
  });
  return make("div", { class: "bar" }, svg);
}

function key(shares, text) {
  return make("p", {}, ...shares.map(([name, value], index) =>
    make("span", { class: "key" }, draw("svg", { viewBox: "0 0 10 10" }, draw("rect", { class: `p${index % 6}`, width: 10, height: 10 })), `${name} ${text(value)}`)));
}

let explained = "";

function explain() {
  const pull = picture.pulls.find((other) => other.digest === chosen.pull);
  if (!pull) return;
  const now = JSON.stringify(pull);
  if (now === explained) return;
  explained = now;
  const parts = [make("p", {}, make("code", {}, pull.digest)), make("p", { class: "verdict" }, "Bound by ", make("strong", {}, pull.verdict.text))];
  const sources = Object.entries(pull.peers).map(([peer, share]) => [`${short(peer)} (${share.zone ?? "unknown zone"})`, share.bytes]);
  sources.push(["other peers", pull.others_bytes], ["own backend", pull.backend_bytes], ["here already", pull.local_bytes]);
  const given = sources.filter(([, value]) => value > 0).sort((one, two) => two[1] - one[1]);
  if (given.length) parts.push(make("h2", {}, "Where the bytes came from"), strip(given), key(given, bytes));
  const phases = Object.entries(pull.phases).filter(([, value]) => value > 0).map(([name, value]) => [NAMES[name] ?? name, value]);
  if (phases.length) parts.push(make("h2", {}, "What the download waited for"), strip(phases), key(phases, seconds));
  if (pull.read) {
    const read = [["opening", pull.read.opened_ms], ["arriving", pull.read.arriving_ms], ["disk", pull.read.disk_ms], ["client", pull.read.client_ms]];
    parts.push(make("h2", {}, "What the client's last read waited for"), strip(read), key(read, seconds));
  }
  const waited = Object.entries(pull.peers).filter(([, share]) => share.waited_ms >= 1).sort((one, two) => two[1].waited_ms - one[1].waited_ms);
  if (waited.length) {
    const body = make("tbody");
    for (const [peer, share] of waited) {
      body.append(make("tr", {}, make("td", {}, code(peer)), make("td", {}, share.zone ?? ""), make("td", { class: "number" }, bytes(share.bytes)),
        make("td", { class: "number" }, seconds(share.waited_ms)), make("td", { class: "number" }, share.timeouts)));
    }
    const head = ["Peer", "Zone", "Gave", "Waited for it", "Timeouts"].map((title, at) => make("th", { scope: "col", class: at > 1 ? "number" : null }, title));
    parts.push(make("h2", {}, "Peers"), make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), body)));
  }
  $("why").classList.remove("quiet");
  $("why").replaceChildren(...parts);
}

// Queues

function pairs(list, entries) {
  const text = JSON.stringify(entries);
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  list.replaceChildren(...entries.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function renderQueues() {
  const { queue, backends, store } = picture.status;
  pairs($("queue"), queue ? [["blobs", queue.blobs], ["records", queue.records], ["oldest", seconds(queue.oldest_ms)], ["tried again", queue.retries], ["last failure", queue.last_error ?? "none"]]
    : [["none", "This process is not an origin: look at the console of one."]]);
  $("backends").hidden = backends.length === 0;
  sync($("backend-rows"), backends, (backend) => backend.backend, () => make("tr"), (row, backend) =>
    fill(row, [backend.backend, backend.keeps_pushes ? (backend.write_back ? "back" : "through") : "–", { number: bytes(backend.read_bytes) }, { number: bytes(backend.written_bytes) }, { number: String(backend.failures) }]));
  $("store-meter").value = store.capacity_bytes ? store.used_bytes / store.capacity_bytes : 0;
  pairs($("store"), [["used", `${bytes(store.used_bytes)} of ${bytes(store.capacity_bytes)}`], ["blobs", store.blobs], ["uploads open", store.uploads], ["evicted", bytes(store.evicted_bytes)]]);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => picture && render());
const wanted = location.hash.slice(1);
show(VIEWS.includes(wanted) ? wanted : "mesh");
connect();
