// The page's behaviour: plain JavaScript over the JSON API of server.py.

const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// What is wrong, by what it is about: it is shown until that very thing succeeds.
const troubles = new Map();

function say(trouble, subject) {
  if (trouble) troubles.set(subject, trouble);
  else troubles.delete(subject);
  const said = [...troubles.values()].join(" ");
  if ($("trouble").textContent !== said) $("trouble").textContent = said;
  $("trouble").hidden = !said;
}

// How many requests are under way or about to be sent; assistive technology waits for 0.
let under = 0;

function busy(change) {
  under += change;
  $("stage").setAttribute("aria-busy", under > 0);
}

// ---- Asking the server -----------------------------------------------------------------------------------------

const LATE = 250; // milliseconds after which an answer is given up for a newer request

async function ask(path, body, signal) {
  const options = body === undefined ? {} : body instanceof Blob ? { method: "POST", body, headers: { "content-type": body.type } }
    : { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  const answer = await fetch(path, { ...options, signal });
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error ?? answer.statusText);
  return data;
}

// A kind of request of which the last one wins: one is under way, the newest waits for it, those between are dropped,
// and one that takes long is aborted when a newer one comes. So a face follows a slider while it moves.
function line(work) {
  let running = null, waiting = null;

  async function start(values) {
    const mine = running = { stop: new AbortController(), since: performance.now() };
    busy(1);
    try {
      await work(mine.stop.signal, ...values);
      say("", work);
    } catch (error) {
      if (error.name !== "AbortError") say(error.message, work);
    }
    busy(-1);
    if (running !== mine) return;
    running = null;
    if (waiting) {
      const next = waiting;
      waiting = null;
      start(next);
    }
  }

  return (...values) => {
    if (running && performance.now() - running.since > LATE) {
      running.stop.abort();
      running = null;
    }
    if (running) waiting = values;
    else start(values);
  };
}

function later(work, milliseconds = 150) {
  let timer = 0;
  return () => {
    if (timer) clearTimeout(timer);
    else busy(1);
    timer = setTimeout(() => {
      timer = 0;
      work();
      busy(-1);
    }, milliseconds);
  };
}

// ---- Attributes ------------------------------------------------------------------------------------------------

const about = await ask("api/about");
const byName = new Map(about.attributes.map((attribute) => [attribute.name, attribute]));
const state = { tab: "make", seed: 0, shown: 0, made: [], face: null, inferred: {} };

// What a model takes for an attribute: of a binary one yes is 1, no 0, and an intensity takes the way between them so
// many times; a real-valued one's are deviations from the mean.
function valueOf(name, { yes, intensity }) {
  if (byName.get(name).kind === "real") return yes ? intensity : -intensity;
  return Math.round(100 * (yes ? intensity : 1 - intensity)) / 100;
}

// A panel of attributes in groups; `chosen` maps a name to {yes, intensity}.
function makePanel(holder, { any, strengths }) {
  const chosen = new Map(), rows = new Map(), counts = new Map();

  function row(name) {
    const id = `${holder.id}-${about.attributes.indexOf(byName.get(name))}`;
    const radios = {};
    const three = make("div", { class: "three" });
    for (const [kind, label] of [["yes", "yes"], ["no", "no"], ["any", any]]) {
      radios[kind] = make("input", { type: "radio", name: id, value: kind, checked: kind === "any",
        "aria-label": `${name}: ${label}`, onchange: () => set(name, kind) });
      three.append(make("label", { class: kind }, radios[kind], label));
    }
    const slider = make("input", { type: "range", min: 0.5, max: 4, step: 0.1, value: 1, "aria-label": `Intensity of ${name}`,
      oninput: () => {
        chosen.get(name).intensity = Number(slider.value);
        output.textContent = slider.value;
        show(true);
      }, onchange: () => show() });
    const output = make("output", {}, "1");
    const strength = make("div", { class: "strength", hidden: true }, slider, output);
    const inferred = make("div", { class: "inferred", hidden: true });
    const field = make("fieldset", { class: "attribute" }, make("legend", {}, name), three, inferred, strength);
    rows.set(name, { field, radios, slider, output, strength, inferred });
    return field;
  }

  for (const group of about.groups) {
    const count = make("small");
    const details = make("details", { class: "group", open: holder.children.length < 2 }, make("summary", {}, group, count));
    const members = about.attributes.filter((attribute) => attribute.group === group).map((attribute) => attribute.name);
    details.append(...members.map(row));
    counts.set(group, { count, details, members });
    holder.append(details);
  }

  function put(name, kind, intensity = 1) {
    if (kind === "any") chosen.delete(name);
    else chosen.set(name, { yes: kind === "yes", intensity });
    const { radios, slider, output, strength } = rows.get(name);
    radios[kind].checked = true;
    slider.value = intensity;
    output.textContent = intensity;
    strength.hidden = !strengths || kind === "any" || model().flows;  // a flow is guided instead
  }

  function renew() {
    for (const [name, { yes, intensity }] of [...chosen]) put(name, yes ? "yes" : "no", model().flows ? 1 : intensity);
    showChips();
  }

  function set(name, kind) {
    put(name, kind, chosen.get(name)?.intensity);
    if (kind === "yes") {
      for (const other of byName.get(name).contradicts) if (chosen.get(other)?.yes) put(other, "any");
    }
    show();
  }

  function show(moving = false) {
    for (const { count, members } of counts.values()) {
      const n = members.filter((name) => chosen.has(name)).length;
      count.textContent = n ? `${n} set` : "";
    }
    if (!holder.hidden) showChips();
    refresh(moving);
  }

  function showChips() {
    const chips = [...chosen].map(([name, { yes, intensity }]) => make("button", {
      class: yes ? "yes" : "no", "aria-label": `Unset ${name}`, onclick: () => { set(name, "any"); $("search").focus(); } },
    `${yes ? "" : "no "}${name}${intensity === 1 ? "" : ` ${intensity}`} ×`));
    if (chips.length) chips.push(make("button", { class: "clear", onclick: () => { clear(); $("search").focus(); } }, "Clear all"));
    $("chosen").replaceChildren(...(chips.length ? chips : ["Nothing is set."]));
  }

  function clear() {
    for (const name of [...chosen.keys()]) put(name, "any");
    show();
  }

  function preset(wanted) {
    for (const name of [...chosen.keys()]) put(name, "any");
    for (const [name, yes] of Object.entries(wanted)) put(name, yes ? "yes" : "no");
    show();
  }

  function search(words) {
    let found = 0;
    for (const { details, members } of counts.values()) {
      let here = 0;
      for (const name of members) {
        const match = name.toLowerCase().includes(words);
        rows.get(name).field.hidden = !match;
        here += match;
      }
      details.hidden = !here;
      if (words && here) details.open = true;
      found += here;
    }
    return found;
  }

  function infer(inferred) {
    for (const [name, { inferred: holder }] of rows) {
      const it = inferred[name];
      holder.hidden = !it;
      if (!it) continue;
      const said = `inferred: ${it.mean.toFixed(2)} ± ${it.deviation.toFixed(2)}`;
      if (byName.get(name).kind === "real") {
        holder.replaceChildren(said);
        continue;
      }
      const spread = make("i"), middle = make("b"), clip = (v) => 100 * Math.min(1, Math.max(0, v));
      spread.style.left = `${clip(it.mean - it.deviation)}%`;
      spread.style.right = `${100 - clip(it.mean + it.deviation)}%`;
      middle.style.left = `calc(${clip(it.mean)}% - 1.5px)`;
      holder.replaceChildren(make("span", { class: "bar", "aria-hidden": "true" }, spread, middle), said);
    }
  }

  return { chosen, set, preset, clear, search, infer, renew, showChips,
    values: () => Object.fromEntries([...chosen].map(([name, it]) => [name, valueOf(name, it)])),
    words: () => [...chosen].map(([name, { yes, intensity }]) => `${yes ? "" : "no "}${name}${intensity === 1 ? "" : ` ${intensity}`}`).join(", ") };
}

const wanted = makePanel($("panel-wanted"), { any: "any", strengths: true });
const changes = makePanel($("panel-changes"), { any: "as is", strengths: false });
const panel = () => (state.tab === "change" ? changes : wanted);

const model = () => about.models.find((each) => each.name === $("model").value);
const looking = () => model().encodes;

// ---- Make a face -----------------------------------------------------------------------------------------------

// The large face, soon: the first of the samples of a flow, which leads the noise's mean to a blur; else the prior's mean.
const askFirst = line(async (signal, body) => {
  const { faces } = await ask("api/make", { ...body, n: 1, ...(model().flows ? {} : { temperature: 0 }) }, signal);
  state.made[0] = faces[0];
  showMade();
});
const askSamples = line(async (signal, body) => {
  const { faces } = await ask("api/make", body, signal);
  state.made.splice(model().flows ? 0 : 1, state.made.length, ...faces);
  showMade();
});
const soonSamples = later(() => askSamples(makeBody()), 60);

function makeBody({ name, guided } = model()) {
  return { model: name, attributes: wanted.values(), n: about.batch, seed: state.seed,
    temperature: Number($("temperature").value), ...(guided ? { guidance: Number($("guidance").value) } : {}) };
}

function nameOfMade(i) {
  const number = model().flows ? i + 1 : i;
  return number ? `Sample ${number} of seed ${state.seed}` : "The face at the prior's mean";
}

function showMade() {
  const holder = $("samples");
  while (holder.children.length > Math.max(state.made.length, 1)) holder.lastChild.remove();
  state.shown = Math.min(state.shown, state.made.length - 1);
  while (holder.children.length < state.made.length) {
    const i = holder.children.length;
    holder.append(make("button", { onclick: () => { state.shown = i; showMade(); } }, make("img", { alt: "", width: 64, height: 64 }),
      ...(i ? [] : [make("span", { class: "tag" }, "mean")])));
  }
  state.made.forEach((face, i) => {
    const button = holder.children[i];
    button.firstChild.src = face ?? "";
    button.setAttribute("aria-label", nameOfMade(i));
    button.setAttribute("aria-pressed", i === state.shown);
    if (i === 0) button.lastChild.hidden = model().flows;
  });
  const words = wanted.words() || "nothing asked for";
  show($("made"), state.made[state.shown], `${nameOfMade(state.shown)}: ${words}`);
  $("made-caption").textContent = `${nameOfMade(state.shown)}: ${words}`;
}

function show(image, source, said) {
  if (!source) return;
  image.src = source;
  if (said !== undefined) image.alt = said;
  if (image.dataset.mini) $("mini").src = source;
}

function download(source, name) {
  make("a", { href: source, download: name }).click();
}

for (const id of ["temperature", "guidance"]) {
  $(id).addEventListener("input", () => refresh(true));
  $(id).addEventListener("change", () => refresh());
}
$("seed").addEventListener("input", () => {
  const seed = Number($("seed").value);
  if (!Number.isInteger(seed) || seed < 0 || seed > 2147483647 || $("seed").value === "") return;
  state.seed = seed;
  refresh();
});
$("reseed").addEventListener("click", () => {
  state.seed = Math.floor(Math.random() * 1e6);
  $("seed").value = state.seed;
  refresh();
});
$("download-made").addEventListener("click", () => download($("made").src, `face-${model().name.replace(/\W+/g, "-")}-${state.seed}-${state.shown}.png`));
$("change-made").addEventListener("click", async () => {
  takeFace(await pixelsOf($("made").src), $("made").src, "made here");
  open("change");
});

async function pixelsOf(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = make("canvas", { width: about.size[1], height: about.size[0] }), pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  let bytes = "";
  for (let i = 0; i < data.length; i += 4) bytes += String.fromCharCode(data[i], data[i + 1], data[i + 2]);
  return btoa(bytes);
}

// ---- Change a face ---------------------------------------------------------------------------------------------

const PAGE = 24;
let page = 0;

function showPicker() {
  const first = page * PAGE, last = Math.min(first + PAGE, about.faces);
  const what = about.faces_are === "test" ? "Test face" : "Generated face";
  $("picker-title").textContent = about.faces_are === "test" ? "Pick a test face, which no model was trained on"
    : "Pick a face (made by the model: no data set was given)";
  $("picker").replaceChildren(...Array.from({ length: last - first }, (_, i) => make("button", {
    "aria-label": `${what} ${first + i + 1}`, "aria-pressed": state.face === first + i, onclick: () => pick(first + i) },
  make("img", { src: `api/faces/${first + i}`, alt: "", width: 64, height: 64, loading: "lazy" }))));
  $("picker-page").textContent = `${first + 1} to ${last} of ${about.faces}`;
  $("picker-back").disabled = !page;
  $("picker-more").disabled = last === about.faces;
}
$("picker-back").addEventListener("click", () => { page -= 1; showPicker(); });
$("picker-more").addEventListener("click", () => { page += 1; showPicker(); });

function pick(number) {
  $("cropping").hidden = true;
  takeFace(number, `api/faces/${number}`);
}

function takeFace(face, source) {
  state.face = face;
  state.inferred = {};
  for (const button of $("picker").children) button.setAttribute("aria-pressed", false);
  if (typeof face === "number" && Math.floor(face / PAGE) === page) $("picker").children[face % PAGE].setAttribute("aria-pressed", true);
  show($("original"), source);
  show($("swipe-before"), source);
  look();
  refresh();
}

const askLook = line(async (signal) => {
  const { inferred, reconstruction } = await ask("api/look", { model: model().name, face: state.face }, signal);
  state.inferred = inferred;
  changes.infer(inferred);
  show($("reconstruction"), reconstruction);
  if ($("strip-card").open) soonStrip();
});
function look() {
  if (looking() && state.face !== null) askLook();
}

function editBody(edits, preview = false) {
  return { preview, model: model().name, face: state.face, edits, intensity: Number($("intensity").value), keep_detail: $("keep-detail").checked };
}

const askEdit = line(async (signal, body) => {
  const { faces } = await ask("api/edit", body, signal);
  const words = changes.words() || "no change";
  show($("edited"), faces[0], `The face, changed: ${words}`);
  show($("swipe-after"), faces[0]);
  $("edited-caption").textContent = `Edit: ${words}`;
});

const askStrip = line(async (signal) => {
  const singles = about.attributes.map(({ name, kind }) => [name, (state.inferred[name]?.mean ?? 0) > (kind === "real" ? 0 : 0.5) ? "no" : "yes"]);
  const holder = $("strip");
  const source = $("original").src;
  for (let start = 0; start < singles.length; start += about.batch) {
    const part = singles.slice(start, start + about.batch);
    const { faces } = await ask("api/edit", editBody(part.map(([name, kind]) => ({
      [name]: valueOf(name, { yes: kind === "yes", intensity: 1 }) }))), signal);
    if ($("original").src !== source) return;
    part.forEach(([name, kind], i) => {
      const button = make("button", { "data-name": name, onclick: () => changes.set(name, kind) },
        make("img", { src: faces[i], alt: "", width: 64, height: 64 }), make("span", {}, `${kind === "no" ? "no " : ""}${name}`));
      const old = holder.children[start + i];
      if (old && old === document.activeElement) old.firstChild.src = faces[i];
      else if (old) old.replaceWith(button);
      else holder.append(button);
    });
  }
});
const soonStrip = later(() => askStrip(), 200);
$("strip-card").addEventListener("toggle", () => { if ($("strip-card").open) soonStrip(); });

for (const id of ["intensity", "keep-detail"]) {
  $(id).addEventListener("input", () => refresh(id === "intensity"));
  $(id).addEventListener("change", () => {
    refresh();
    if ($("strip-card").open) soonStrip();
  });
}
$("download-edited").addEventListener("click", () => download($("edited").src, "face-edited.png"));

function showSwipe() {
  const share = Number($("swipe").value);
  $("swipe-after").style.clipPath = `inset(0 0 0 ${100 - share}%)`;
  $("swipe-line").style.left = `calc(${100 - share}% - 1px)`;
}
$("swipe").addEventListener("input", showSwipe);
for (const kind of ["pointerdown", "pointermove"]) {
  document.querySelector(".pair").addEventListener(kind, (event) => {
    if (!event.buttons) return;
    event.preventDefault();
    const { left, width } = event.currentTarget.getBoundingClientRect();
    $("swipe").value = 100 - 100 * (event.clientX - left) / width;
    showSwipe();
  });
}

// A photograph: the server finds the face and cuts it; the square can be moved.
const photo = { file: null, turn: 0, width: 0, height: 0, box: null };

const askCrop = line(async (signal, box) => {
  const where = box ? `?left=${box.left}&top=${box.top}&size=${box.size}&turn=${photo.turn}` : "";
  const crop = await ask(`api/photo${where}`, photo.file, signal);
  if (!box) {
    Object.assign(photo, { turn: crop.turn, width: crop.width, height: crop.height, box: crop.box });
    $("preview").src = crop.preview;
    await $("preview").decode();
    $("cropping").hidden = false;
    $("crop-said").textContent = crop.found === null ? "There is no face detector here (pip install dlib-bin). Move the square to the face: from brows to chin, ear to ear."
      : crop.found ? `A face was found${crop.turn ? ", the photograph turned" : ""}. Move the square if it is not the one, or not all of it.`
      : "No face was found. Move the square to where it is: from brows to chin, ear to ear.";
    showCrop();
  }
  takeFace(await pixelsOf(crop.face), crop.face);
});

function takePhoto(file) {
  if (!file) return;
  if (file.size > about.upload_bytes) {
    say(`The photograph is too large: ${(file.size / 2 ** 20).toFixed(1)} MiB; at most ${about.upload_bytes / 2 ** 20} MiB are taken.`, takePhoto);
    return;
  }
  say("", takePhoto);
  photo.file = file;
  open("change");
  askCrop();
}

function showCrop() {
  const scale = $("preview").clientWidth / photo.width, { left, top, size } = photo.box, style = $("crop-box").style;
  style.left = `${left * scale}px`;
  style.top = `${top * scale}px`;
  style.width = style.height = `${size * scale}px`;
  const share = size / Math.max(photo.width, photo.height);
  $("crop-size").value = share;
  $("crop-size-said").textContent = `${Math.round(size)} pixels`;
}

function moveCrop(left, top, size) {
  const { width, height } = photo, middle = (v, low, high) => Math.min(Math.max(v, low), high);
  size = middle(size, Math.max(1, 0.05 * Math.max(width, height)), Math.max(width, height));
  photo.box = { size, left: middle(left, -size / 2, width - size / 2), top: middle(top, -size / 2, height - size / 2) };
  showCrop();
  askCrop(photo.box);
}

$("crop-size").addEventListener("input", () => {
  const { left, top, size } = photo.box, wide = Number($("crop-size").value) * Math.max(photo.width, photo.height);
  moveCrop(left + (size - wide) / 2, top + (size - wide) / 2, wide);
});
$("crop-box").addEventListener("keydown", (event) => {
  const { left, top, size } = photo.box, step = (event.shiftKey ? 0.05 : 0.01) * Math.max(photo.width, photo.height);
  const moves = { ArrowLeft: [-step, 0, 0], ArrowRight: [step, 0, 0], ArrowUp: [0, -step, 0], ArrowDown: [0, step, 0],
    "+": [-step / 2, -step / 2, step], "=": [-step / 2, -step / 2, step], "-": [step / 2, step / 2, -step] }[event.key];
  if (!moves) return;
  event.preventDefault();
  moveCrop(left + moves[0], top + moves[1], size + moves[2]);
});
$("crop-box").addEventListener("pointerdown", (event) => {
  event.preventDefault();
  $("crop-box").focus({ focusVisible: false });
  const start = { ...photo.box }, resize = event.target === $("crop-handle"), scale = photo.width / $("preview").clientWidth;
  $("crop-box").setPointerCapture(event.pointerId);
  const move = (now) => {
    const right = (now.clientX - event.clientX) * scale, down = (now.clientY - event.clientY) * scale;
    if (resize) moveCrop(start.left, start.top, start.size + Math.max(right, down));
    else moveCrop(start.left + right, start.top + down, start.size);
  };
  $("crop-box").addEventListener("pointermove", move);
  for (const end of ["pointerup", "pointercancel"]) {
    $("crop-box").addEventListener(end, () => $("crop-box").removeEventListener("pointermove", move), { once: true });
  }
});
addEventListener("resize", () => { if (!$("cropping").hidden) showCrop(); });
$("choose-photo").addEventListener("click", () => $("photo").click());
$("photo").addEventListener("change", () => {
  takePhoto($("photo").files[0]);
  $("photo").value = "";
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("dropping").hidden = !event.dataTransfer.types.includes("Files");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("dropping").hidden = true; });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("dropping").hidden = true;
  takePhoto(event.dataTransfer.files[0]);
});

// ---- Compare ---------------------------------------------------------------------------------------------------

const askCompared = line(async (signal) => {
  if (!$("compared").children.length) {
    $("compared").append(...about.models.map(({ name, run }) => make("div", { class: "compared" }, make("h3", {}, name, " ",
      make("span", { class: "hint" }, run)), make("div", { class: "faces" }))));
  }
  await Promise.all(about.models.map(async (each, i) => {
    const { name } = each;
    const [mean, samples] = await Promise.all([{ n: 1, temperature: 0 }, {}].map((change) =>
      ask("api/make", { ...makeBody(each), ...change }, signal)));
    $("compared").children[i].lastChild.replaceChildren(...[...mean.faces, ...samples.faces].map((face, j) =>
      make("img", { src: face, width: 64, height: 64, alt: `${name}, ${j ? `sample ${j}` : "mean"}: ${wanted.words() || "nothing asked for"}` })));
  }));
});

async function showResults() {
  const { rows, title } = await ask("api/results");
  $("results-title").textContent = title ? `Results: ${title}` : "Results";
  $("results").replaceChildren(rows.length ? make("table", {}, make("thead", {}, make("tr", {}, ...rows[0].map((cell) => make("th", { scope: "col" }, cell)))),
    make("tbody", {}, ...rows.slice(1).map((row) => make("tr", {}, ...row.map((cell, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, cell))))))
    : make("p", { class: "hint" }, "None yet: python -m cmma_jax evaluate --parzen measures the models and writes the table."));
}

// ---- The whole -------------------------------------------------------------------------------------------------

// moving: whether a slider is being moved; then a flow's solver takes fewer steps, and what takes longer waits.
function refresh(moving = false) {
  say("", looking);
  $("guiding").hidden = !model().guided;
  $("guidance-said").textContent = Number($("guidance").value).toFixed(1);
  $("temperature-said").textContent = Number($("temperature").value).toFixed(2);
  $("intensity-said").textContent = Number($("intensity").value).toFixed(1);
  if (state.tab === "make") {
    askFirst({ ...makeBody(), preview: moving });
    if (!moving || !model().flows) soonSamples();
  } else if (state.tab === "compare") {
    if (!moving) askCompared();
  } else if (!looking()) {
    say(`The ${model().name} cannot encode a face; choose another model above.`, looking);
  } else if (state.tab === "change" && state.face !== null) {
    askEdit(editBody([changes.values()], moving));
  }
}

const tabs = [...document.querySelectorAll("[role=tab]")];

function open(name) {
  state.tab = name;
  troubles.clear();
  for (const tab of tabs) {
    const mine = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", mine);
    tab.tabIndex = mine ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !mine;
  }
  $("panel-wanted").hidden = name === "change";
  $("panel-changes").hidden = name !== "change";
  $("panel-title").textContent = { make: "What the face is to have", change: "What is to change", compare: "What the faces are to have" }[name];
  panel().showChips();
  for (const id of ["made", "edited"]) delete $(id).dataset.mini;
  const large = { make: "made", change: "edited" }[name];
  seen.disconnect();
  $("mini").hidden = true;
  if (large) {
    $(large).dataset.mini = "yes";
    if ($(large).src) $("mini").src = $(large).src;
    seen.observe($(large));
  }
  if (name === "change" && state.face === null && about.faces && looking()) pick(0);
  if (name === "compare") showResults().catch((error) => say(error.message, showResults));
  history.replaceState(null, "", `#${name}`);
  refresh();
}

// On a narrow screen the face stays in sight, small, while its attributes are set below it.
const seen = new IntersectionObserver(([entry]) => {
  $("mini").hidden = entry.isIntersecting || !matchMedia("(max-width: 960px)").matches || !entry.target.getAttribute("src");
});

for (const tab of tabs) {
  tab.addEventListener("click", () => open(tab.id.slice(4)));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -tabs.indexOf(tab), End: tabs.length - 1 - tabs.indexOf(tab) }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
}

$("model").append(...about.models.map(({ name, run }) => make("option", { value: name }, `${name} (${run})`)));
$("model").addEventListener("change", () => {
  troubles.clear();
  wanted.renew();
  panel().showChips();
  changes.infer({});
  if (state.tab === "change" && state.face === null && looking()) pick(0);
  else look();
  refresh();
});
$("search").addEventListener("input", () => {
  const words = $("search").value.trim().toLowerCase();
  const found = Math.max(wanted.search(words), changes.search(words));
  $("none-found").hidden = found > 0;
});
$("presets").append(...Object.keys(about.presets).map((title) => make("option", { value: title }, title)));
$("presets").hidden = !Object.keys(about.presets).length;
$("presets").addEventListener("change", () => {
  if ($("presets").value) panel().preset(about.presets[$("presets").value]);
  $("presets").value = "";
});
$("notice").textContent = `The faces are of a research data set (${about.dataset}), and those made here follow it. The attributes are opinions of ` +
  "annotators and classifiers, with their biases: they say nothing about what a person is.";

$("guidance").value = about.guidance;
busy(0);
showPicker();
showSwipe();
open(["make", "change", "compare"].find((name) => location.hash === `#${name}`) ?? "make");
