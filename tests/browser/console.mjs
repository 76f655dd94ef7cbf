// Drives the console in Chromium for the test `console.rs`, over the DevTools protocol on a pipe.
//
//   node console.mjs URL DIGEST DIRECTORY
//
// Prints "watching" when the page is live, and at the end one line of JSON: how the blob's piece map filled, which views
// the keyboard reached, what went wrong. Screenshots go to DIRECTORY.
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

const [url, digest, directory] = process.argv.slice(2);
const PATIENCE_MS = 120_000;

const browser = spawn("chromium", [
  "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
  "--hide-scrollbars", "--window-size=1280,900", `--user-data-dir=${join(directory, "profile")}`,
  "--remote-debugging-pipe", "about:blank",
], { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
browser.on("error", (error) => { console.error(`chromium: ${error.message}`); process.exit(1); });

let next = 1;
const waiting = new Map();
const errors = [];
const outside = [];
const origin = new URL(url).origin;

function heard(message) {
  const { id, method, params } = message;
  if (id) {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    return message.error ? reject(new Error(message.error.message)) : resolve(message.result);
  }
  if (method === "Runtime.exceptionThrown") errors.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
  if (method === "Runtime.consoleAPICalled" && ["error", "warning", "assert"].includes(params.type)) errors.push(params.args.map((arg) => arg.value ?? arg.description).join(" "));
  if (method === "Log.entryAdded" && ["error", "warning"].includes(params.entry.level)) errors.push(`${params.entry.text} ${params.entry.url ?? ""}`);
  if (method === "Network.requestWillBeSent") {
    const asked = params.request.url;
    if (!asked.startsWith(`${origin}/`) && !asked.startsWith("data:")) outside.push(asked);
  }
}

let rest = "";
browser.stdio[4].setEncoding("utf8").on("data", (text) => {
  const messages = (rest + text).split("\0");
  rest = messages.pop();
  for (const message of messages) heard(JSON.parse(message));
});

function send(method, params = {}, sessionId = undefined) {
  const id = next++;
  browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

const pause = (millis) => new Promise((resolve) => setTimeout(resolve, millis));
async function until(what, probe) {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const value = await probe();
    if (value) return value;
    if (Date.now() > end) throw new Error(`gave up waiting until ${what}`);
    await pause(50);
  }
}

async function main() {
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
  const page = (method, params) => send(method, params, sessionId);
  const evaluate = async (expression) => {
    const { result, exceptionDetails } = await page("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  };
  const shoot = async (name) => {
    const { data } = await page("Page.captureScreenshot", { format: "png" });
    writeFileSync(join(directory, `${name}.png`), Buffer.from(data, "base64"));
  };
  const press = async (key, text) => {
    const code = { Enter: 13, Tab: 9, ArrowRight: 39 }[key] ?? key.charCodeAt(0);
    await page("Input.dispatchKeyEvent", { type: "keyDown", key, text, windowsVirtualKeyCode: code });
    await page("Input.dispatchKeyEvent", { type: "keyUp", key, windowsVirtualKeyCode: code });
  };
  const scheme = (value) => page("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value }] });
  for (const domain of ["Runtime", "Log", "Network", "Page"]) await page(`${domain}.enable`);
  await scheme("light");
  await page("Page.navigate", { url: `${url}/#swarms` });
  await until("the page is live", () => evaluate(`document.getElementById("state")?.textContent === "live"`));
  console.log("watching");

  // The piece map of the blob while it arrives: what the card says, and the share of painted columns.
  const card = `document.querySelector('[data-key="${digest}"]')`;
  const filled = [];
  let shot = false;
  await until("the blob is whole", async () => {
    const seen = await evaluate(`(() => {
      const card = ${card};
      if (!card) return null;
      const canvas = card.querySelector("canvas");
      const { width, height } = canvas;
      // A copy: reading the page's own canvas would change how it is drawn.
      const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
      copy.drawImage(canvas, 0, 0);
      const line = copy.getImageData(0, height - 1, width, 1).data;
      const empty = getComputedStyle(document.documentElement).getPropertyValue("--empty").trim();
      const [r, g, b] = [1, 3, 5].map((at) => parseInt(empty.slice(at, at + 2), 16));
      let painted = 0;
      for (let at = 0; at < line.length; at += 4) if (line[at] !== r || line[at + 1] !== g || line[at + 2] !== b) painted += 1;
      return { have: Number(card.dataset.have), total: Number(card.dataset.total), painted: painted / width };
    })()`);
    if (!seen || !seen.total) return false;
    if (filled.at(-1)?.have !== seen.have) filled.push(seen);
    if (!shot && seen.have > seen.total * 0.3 && seen.have < seen.total * 0.8) { shot = true; await shoot("swarm-filling"); }
    return seen.have === seen.total;
  });

  // Every view, by keyboard alone, in both colour schemes.
  const views = [];
  for (const [key, name] of [["1", "mesh"], ["2", "swarms"], ["3", "images"], ["4", "pulls"], ["5", "queues"]]) {
    await press(key, key);
    await until(`${name} is shown`, () => evaluate(`!document.getElementById("${name}").hidden`));
    if (name === "images") {
      // From the tab to the first repository, and from there to the first tag.
      await until("repositories are listed", () => evaluate(`document.querySelector("#repositories button")`));
      await evaluate(`document.querySelector("#repositories button").focus()`);
      await press("Enter", "\r");
      await until("tags are listed", () => evaluate(`document.querySelector("#tags button")`));
      await evaluate(`document.querySelector("#tags button").focus()`);
      await press("Enter", "\r");
      await until("layers are listed", () => evaluate(`document.querySelector("#image table")`));
    }
    if (name === "pulls") {
      await until("pulls are listed", () => evaluate(`document.querySelector('#pull-list [data-key="${digest}"] button')`));
      await evaluate(`document.querySelector('#pull-list [data-key="${digest}"] button').focus()`);
      await press("Enter", "\r");
      await until("the pull is explained", () => evaluate(`document.querySelector("#why .verdict")`));
    }
    if (name === "mesh") await until("traffic is shown", () => evaluate(`document.querySelector("#flow-rows tr") && document.querySelector("#map .node")`));
    for (const value of ["light", "dark"]) {
      await scheme(value);
      await pause(700);
      await shoot(`${name}-${value}`);
    }
    views.push(name);
    // A page wider than the window is a fault of layout.
    const overflow = await evaluate(`document.documentElement.scrollWidth - document.documentElement.clientWidth`);
    if (overflow > 0) errors.push(`${name} is ${overflow} pixels too wide`);
  }
  await evaluate(`document.getElementById("tab-queues").focus()`);
  await press("ArrowRight");
  await until("arrows move between views", () => evaluate(`document.activeElement.id === "tab-mesh" && !document.getElementById("mesh").hidden`));
  const why = await evaluate(`document.querySelector("#why .verdict").textContent`);
  // A narrow window keeps everything inside.
  await page("Emulation.setDeviceMetricsOverride", { width: 420, height: 900, deviceScaleFactor: 1, mobile: false });
  for (const key of ["1", "3", "4"]) {
    await press(key, key);
    await pause(700);
    const overflow = await evaluate(`document.documentElement.scrollWidth - document.documentElement.clientWidth`);
    if (overflow > 0) errors.push(`view ${key} is ${overflow} pixels too wide in a narrow window`);
  }
  await shoot("narrow");
  console.log(JSON.stringify({ filled, views, why, errors, outside }));
}

main().then(() => 0, (error) => { console.error(error.stack, errors); return 1; }).then((code) => {
  browser.kill("SIGKILL");
  process.exit(code);
});
