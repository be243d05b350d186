// The page: what a visitor types goes to the classifier, and what it answers and costs is shown.

import { DemoError, fetchChecked, fetchJson, fetchManifest, firstLine, makeEncoder, openModel, requireWebAssembly,
  RESTART } from "./classifier.mjs";
import { manifestFacts, megabytes, milliseconds, percent, seconds } from "./facts.mjs";
import { ofLength, summary, timeInTurn, MOST_ROUNDS, WARMUP_ROUNDS } from "./latency.mjs";

const BUNDLE = "bundle/";
const FLOAT32 = "float32/";
const FIXED_LENGTH = 128;
const TYPING_PAUSE = 250; // milliseconds without a key after which the text is classified
const CHECK_TOLERANCE = 0.05; // how far probabilities may lie from those where the bundle was made, as in classify.py
const UNSTEADY = 0.1; // an IQR above this share of the median is marked, as in the study's tables
// Where the bundle offers no examples.
const FIRST_TEXTS = { 1: ["A warm, funny film that never outstays its welcome."],
  2: ["Somebody is playing a guitar on the stage.", "Somebody is making music."] };

const models = {}; // `bundle`, and `float32` once the visitor asked for it
const page = { manifest: null, comparison: null, libraries: null, request: 0, measuring: null };
const element = (id) => document.getElementById(id);

// What a test, or a curious visitor's console, can drive: rows are texts, or arrays of one or two texts.
globalThis.edgemin = {
  ready: start(),
  classify: (rows, model = "bundle") => each(rows, (texts) => models[model].classify(texts)),
  measure,
  loadFloat32,
};

async function each(rows, answer) {
  const answers = [];
  for (const row of rows) answers.push(await answer([row].flat()));
  return answers;
}

async function start() {
  try {
    requireWebAssembly();
    const [manifest, comparison, libraries] = await Promise.all(
      [fetchManifest(BUNDLE), fetchJson("float32/comparison.json"), importLibraries()]);
    Object.assign(page, { manifest, comparison, libraries });
    const [graph, rules] = await Promise.all(["model.onnx", "tokenizer.json"].map(
      (name) => fetchChecked(BUNDLE + name, manifest.files[name])));
    const fetched = performance.now();
    const encode = makeEncoder(libraries.Tokenizer, parse(rules), manifest.max_length);
    models.bundle = await openModel(libraries.runtime, graph, "model.onnx", encode, manifest);
    makeFields(manifest);
    const first = await answer();
    await showFacts({ fetched, answered: performance.now() }, rules.length);
    showComparison();
    for (const id of ["fields", "classify"]) element(id).disabled = false;
    measure().catch(fail);
    return first;
  } catch (error) {
    fail(error);
    return null;
  }
}

async function importLibraries() {
  try {
    const [runtime, { Tokenizer }] = await Promise.all(
      [import("./packages/onnxruntime.mjs"), import("./packages/tokenizers.mjs")]);
    runtime.env.wasm.numThreads = 1;
    runtime.env.wasm.wasmPaths = { wasm: new URL("packages/onnxruntime.wasm", document.baseURI).href };
    runtime.env.logLevel = "error";
    return { runtime, Tokenizer };
  } catch (error) {
    throw new DemoError(`onnxruntime-web or the tokenizer cannot be loaded (${firstLine(error)}); ${RESTART}.`);
  }
}

function parse(bytes) {
  return JSON.parse(new TextDecoder().decode(bytes));
}

// ---- trying it ----

function firstTexts({ examples = [], text_columns: columns }) {
  return examples[0] ?? FIRST_TEXTS[columns.length];
}

function makeFields(manifest) {
  const columns = manifest.text_columns;
  const texts = firstTexts(manifest);
  const boxes = columns.map((column, index) => {
    const label = made("label", sentenceCase(column));
    const box = made("textarea", "", { id: `text-${index}`, name: column, rows: 3, value: texts[index] });
    label.htmlFor = box.id;
    const field = made("div");
    field.append(label, box);
    return field;
  });
  element("fields").append(...boxes);
  element("synthetic").hidden = !manifest.synthetic;
  element("examples").append(...(manifest.examples ?? []).map((example) => {
    const button = made("button", example.join(" / "), { type: "button" });
    button.addEventListener("click", () => {
      boxes.forEach((field, index) => { field.querySelector("textarea").value = example[index]; });
      answer().catch(fail);
    });
    return button;
  }));
  let pause;
  element("form").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => answer().catch(fail), TYPING_PAUSE);
  });
  element("form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(pause);
    answer().catch(fail);
  });
  element("measure").addEventListener("click", () => measure().catch(fail));
  element("load-float32").addEventListener("click", () => loadFloat32().catch(failComparison));
}

function typedTexts() {
  return Array.from(element("fields").querySelectorAll("textarea"), (box) => box.value);
}

/** Classifies what is typed and shows it, unless something newer was typed meanwhile. */
async function answer() {
  const texts = typedTexts();
  const request = page.request += 1;
  if (!texts.every((text) => text.trim())) {
    element("verdict").textContent = "";
    element("bars").replaceChildren();
    element("state").textContent = texts.length > 1 ? "Type both texts to classify them." : "Type a text to classify it.";
    return null;
  }
  const found = await models.bundle.classify(texts);
  const other = models.float32 ? await models.float32.classify(texts) : null;
  if (request === page.request) {
    showAnswer(found);
    if (other) showAgreement(found, other);
  }
  return found;
}

function showAnswer({ label, probabilities, tokens, cut }) {
  const { labels } = page.manifest;
  const best = labels.indexOf(label);
  element("verdict").textContent = `${label}, ${percent(probabilities[best])}`;
  element("bars").replaceChildren(...labels.map((name, index) => {
    const item = made("li", "", { className: index === best ? "best" : "" });
    const track = made("div", "", { className: "track" });
    const fill = made("div", "", { className: "fill" });
    fill.style.width = `${100 * probabilities[index]}%`;
    track.append(fill);
    track.setAttribute("aria-hidden", "true");
    item.append(made("span", name), made("span", percent(probabilities[index])), track);
    return item;
  }));
  const end = page.manifest.rules.truncation_side === "left" ? "last" : "first";
  element("state").textContent = cut ? `The ${end} ${tokens} tokens; the rest is beyond what this model reads`
    : `${tokens} tokens`;
}

// ---- size and speed ----

function showComparison() {
  const { graph, missing } = page.comparison;
  element("size").cells[1].textContent = megabytes(models.bundle.bytes);
  element("costs").classList.toggle("without-float32", !graph);
  element("load-float32").hidden = !graph;
  element("comparison").textContent = missing ?? "";
  if (graph) {
    element("load-float32").textContent = `Load the FP32 model (${megabytes(graph.bytes)})`;
    element("size").cells[2].textContent = megabytes(graph.bytes);
    showRatio(element("size").cells[3], graph.bytes, models.bundle.bytes, "smaller", "larger");
  }
}

/** Times every loaded model on the typed text and at a fixed length, and shows it; one measurement at a time. */
function measure() {
  page.measuring ??= measureOnce().finally(() => { page.measuring = null; });
  return page.measuring;
}

async function measureOnce() {
  const given = typedTexts();
  const texts = given.every((text) => text.trim()) ? given : firstTexts(page.manifest);
  element("measure").disabled = true;
  element("protocol").textContent = "Measuring …";
  try {
    const loaded = Object.values(models);
    const encodings = loaded.map((model) => model.encode(texts));
    const fixed = Math.min(FIXED_LENGTH, page.manifest.max_length);
    const rows = { "own-length": encodings, "fixed-length": encodings.map((encoding) => ofLength(encoding, fixed)) };
    const results = {};
    for (const [row, inputs] of Object.entries(rows)) {
      const feeds = loaded.map((model, index) => model.feed(inputs[index]));
      results[row] = await timeInTurn(loaded.map((model, index) => () => model.run(feeds[index])));
      showLatency(row, results[row]);
    }
    head("own-length", "Latency of your text", `${encodings[0].ids.length} tokens`);
    head("fixed-length", `Latency at 1x${fixed}`, fixed < FIXED_LENGTH ? "its longest input" : "");
    const tokenizing = summary(Array.from({ length: MOST_ROUNDS }, () => clock(() => models.bundle.encode(texts))));
    element("protocol").textContent = `Median, IQR and number of runs in this browser after ${WARMUP_ROUNDS} ` +
      `warm-ups, one thread, model alone; tokenizing your text takes ${milliseconds(tokenizing.median)} more. ` +
      "~ marks an IQR above 10 % of its median.";
    return { ...results, tokenizing };
  } finally {
    element("measure").disabled = false;
  }
}

function showLatency(row, results) {
  const { cells } = element(row);
  results.forEach(({ median, iqr, runs }, index) => {
    cells[index + 1].replaceChildren(`${iqr > UNSTEADY * median ? "~\u00a0" : ""}${milliseconds(median)}`,
      made("small", `IQR ${milliseconds(iqr)}`), made("small", `${runs} runs`));
  });
  if (results.length > 1) showRatio(cells[3], results[1].median, results[0].median, "faster", "slower");
}

function head(row, text, detail) {
  element(row).cells[0].replaceChildren(text, made("small", detail));
}

/** What the bundle gains over the FP32 model, whose number stands first, or loses. */
function showRatio(cell, float32, bundle, gain, loss) {
  const times = Math.max(float32, bundle) / Math.min(float32, bundle);
  const even = times < 1.05;
  cell.replaceChildren(even ? "≈ 1" : `${times.toFixed(1)}×`,
    made("small", even ? "no difference" : float32 > bundle ? gain : loss));
}

/** Fetches the FP32 model, answers with both and times them in turn. */
async function loadFloat32() {
  const { graph, tokenizer } = page.comparison;
  element("load-float32").disabled = true;
  element("comparison").textContent = "Loading the FP32 model …";
  const started = performance.now();
  await page.measuring;
  const bytes = await fetchChecked(`${FLOAT32}model.onnx`, graph, RESTART);
  const encode = tokenizer ? makeEncoder(page.libraries.Tokenizer,
    parse(await fetchChecked(`${FLOAT32}tokenizer.json`, tokenizer, RESTART)), page.manifest.max_length) : models.bundle.encode;
  models.float32 = await openModel(page.libraries.runtime, bytes, "the FP32 model", encode, page.manifest);
  element("load-float32").hidden = true;
  element("comparison").textContent = `The FP32 model was loaded in ${seconds(performance.now() - started)}.`;
  await answer();
  await page.measuring;  // one that was begun while the model was on its way knows the bundle alone
  return measure();
}

function showAgreement(found, other) {
  const { cells } = element("answers");
  for (const [index, { label, probabilities }] of [found, other].entries()) {
    cells[index + 1].replaceChildren(label, made("small", percent(Math.max(...probabilities))));
  }
  cells[3].textContent = found.label === other.label ? "agree" : "differ";
}

// ---- what the bundle says of itself ----

async function showFacts({ fetched, answered }, tokenizerBytes) {
  const { task, labels, max_length: limit, files, what, check } = page.manifest;
  const total = Object.values(files).reduce((sum, file) => sum + file.bytes, 0);
  const facts = {
    Task: `${task}: ${labels.join(", ")}; texts are cut at ${limit} tokens`,
    "Ready after": `${seconds(answered)} from opening the page to the first answer, of which ${seconds(fetched)} ` +
      "went on fetching and checking files",
    Files: `model.onnx ${megabytes(models.bundle.bytes)}, tokenizer.json ${megabytes(tokenizerBytes)}, ` +
      `${megabytes(total)} in all; what runs was checked by SHA-256`,
    Model: what,
    ...manifestFacts(page.manifest),
    "Same as where it was made": check && await checkAnswers(check),
  };
  for (const [name, text] of Object.entries(facts)) {
    if (text) element("facts").append(made("dt", name), made("dd", text));
  }
  element("versions").textContent = `onnxruntime-web ${page.libraries.runtime.env.versions.web}. Everything comes ` +
    "from this machine's own server; the page asks no other.";
}

/** How near this browser's probabilities of the bundle's check texts come to those of the machine that made it. */
async function checkAnswers({ texts, probabilities }) {
  const answers = await each(texts, models.bundle.classify);
  const furthest = Math.max(...answers.flatMap((answer, row) =>
    answer.probabilities.map((value, label) => Math.abs(value - probabilities[row][label]))));
  return `${furthest <= CHECK_TOLERANCE ? "yes" : "no"}: probabilities of ${texts.length} check texts differ by ` +
    `${furthest < 1e-4 ? "less than 0.0001" : `at most ${furthest.toFixed(4)}`}`;
}

// ---- small things ----

function fail(error) {
  const known = error instanceof DemoError;
  element("problem").textContent = known ? error.message : `The page stopped: ${firstLine(error)}.`;
  element("problem").hidden = false;
  element("state").textContent = "";
  if (!known) console.error(error);
}

function failComparison(error) {
  element("load-float32").disabled = false;
  element("comparison").textContent = error instanceof DemoError ? error.message
    : `The FP32 model cannot be compared: ${firstLine(error)}.`;
}

function made(tag, text = "", properties = {}) {
  const node = Object.assign(document.createElement(tag), properties);
  if (text) node.textContent = text;
  return node;
}

function clock(call) {
  const start = performance.now();
  call();
  return performance.now() - start;
}

function sentenceCase(text) {
  return text.charAt(0).toUpperCase() + text.slice(1).replaceAll("_", " ");
}
