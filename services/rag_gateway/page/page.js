// The page: asks, streams the answer, opens citations, and shows what is live. Everything shown is set as text, never
// as markup: documents and questions are data here as well.

const $ = (id) => document.getElementById(id);
const form = $("ask-form");
const EXAMPLES = [
  "How long can I cancel free of charge after booking?",
  "Where am I staying, and from when?",
  "How many seats are left on MT103, and what does it cost?",
];
const KINDS = ["changes", "decisions", "profiles", "indexed", "turns", "ratings", "kpis"];
const EVENTS_MAX = 200;
const STATUS_EVERY_MS = 2000;

const state = {
  conversation: recall("conversation"),
  // Each answer moves many KPIs, which have a place of their own.
  hidden: new Set(JSON.parse(recall("hidden") || '["kpis"]')),
  status: null,
  statusAt: 0,
};

// Small things ----------------------------------------------------------------------------------------------------

function recall(name) {
  try { return sessionStorage.getItem(`headwater.${name}`) || ""; } catch { return ""; }
}

function remember(name, value) {
  try { sessionStorage.setItem(`headwater.${name}`, value); } catch { /* private windows keep nothing */ }
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function age(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

function behind(count, [none, some] = ["up to date", "changes behind"]) {
  const n = Number(count);
  if (n === 0) return element("span", { className: "tag good", textContent: none });
  return element("span", { className: "tag warn", textContent: `${n.toLocaleString("en")} ${some}` });
}

function moment(time) {
  const at = new Date(time);
  const thisYear = at.getFullYear() === new Date().getFullYear();
  return at.toLocaleString("en-GB", { day: "numeric", month: "short", ...(thisYear ? {} : { year: "numeric" }), hour: "2-digit", minute: "2-digit" }).replace(",", "");
}

function titleOf(thing, name) {
  return thing.title ? thing.title.replaceAll(" > ", " › ") : name;
}

function debounced(work, ms) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(work, ms); };
}

async function json(path, options) {
  const response = await fetch(path, options);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error ? body.error.message : response.statusText);
  return body;
}

// Asking ----------------------------------------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = form.question.value.trim();
  if (text && !$("send").disabled) ask(text);
});

form.question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

form.as.addEventListener("change", () => { remember("as", form.as.value.trim()); showProfile(); });

$("new").addEventListener("click", () => {
  state.conversation = "";
  remember("conversation", "");
  $("thread").replaceChildren();
  form.question.focus();
});

async function ask(text) {
  const turn = newTurn(text);
  $("send").disabled = true;
  form.question.value = "";
  const body = {
    question: text,
    as: form.as.value.trim(),
    conversation_id: state.conversation,
    at_least: form.at_least.value.trim(),
    access: form.access.value.split(",").map((label) => label.trim()).filter(Boolean),
  };
  try {
    const response = await fetch("/api/ask", {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const { event, data } of serverEvents(response.body)) {
      if (event === "context") turn.context = data;
      else if (event === "text") turn.add(data.text);
      else if (event === "answer") finish(turn, data);
      else if (event === "error") throw new Error(data.error.message);
    }
  } catch (error) {
    turn.fail(error.message || "the server cannot be reached");
  } finally {
    turn.node.classList.remove("waiting");
    $("send").disabled = false;
    form.question.focus({ preventScroll: true });
  }
}

async function* serverEvents(stream) {
  const decoder = new TextDecoder();
  let held = "";
  for (const reader = stream.getReader(); ;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += decoder.decode(value, { stream: true });
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const lines = Object.fromEntries(block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      yield { event: lines.event || "message", data: JSON.parse(lines.data) };
    }
  }
}

function newTurn(question) {
  const node = $("turn").content.firstElementChild.cloneNode(true);
  const text = node.querySelector(".text");
  node.classList.add("waiting");
  node.querySelector(".asked").textContent = question;
  $("thread").append(node);
  node.scrollIntoView({ block: "end", behavior: "smooth" });
  return {
    node,
    context: null,
    add(words) { text.append(words); node.scrollIntoView({ block: "nearest" }); },
    fail(why) { node.classList.add("failed"); text.textContent = why; },
  };
}

function finish(turn, answer) {
  state.conversation = answer.conversation_id;
  remember("conversation", answer.conversation_id);
  show(turn, answer);
}

// One answer: an Answer of Ask, or a turn that was read back.
function show(turn, answer) {
  const { node, context } = turn;
  node.classList.remove("waiting");
  node.classList.toggle("unanswered", !answer.answered);
  node.dataset.answer = answer.answer_id;
  withMarks(node.querySelector(".text"), answer, context);
  node.querySelector(".citations").replaceChildren(...answer.citations.map((citation) => citationButton(citation, context)));
  node.querySelector(".missing").replaceChildren(...answer.missing.map((missing) => element("li", { textContent: `without ${missing}` })));
  const stores = answer.freshness || [];
  const lag = stores.reduce((sum, store) => sum + Number(store.behind), 0);
  node.querySelector(".stamp").replaceChildren(
    element("span", { textContent: answer.model }),
    element("span", { textContent: `${Math.round(answer.latency_ms)} ms` }),
    ...(stores.length ? [Object.assign(behind(lag), { title: stores.map(currentTo).join("\n") })] : []),
  );
  if (context) showContext(node.querySelector(".context"), context);
  for (const vote of node.querySelectorAll(".vote")) vote.onclick = () => rate(answer, vote);
  node.scrollIntoView({ block: "nearest" });
}

function currentTo(store) {
  return `${store.store}: ${store.behind} behind; ${store.sources.map((source) => `${source.source} to ${source.as_of}`).join(", ")}`;
}

// The text with a button in the place of each [n].
function withMarks(target, answer, context) {
  const pieces = answer.text.split(/(\[\d{1,3}\])/);
  target.replaceChildren(...pieces.filter(Boolean).map((piece) => {
    const number = /^\[(\d{1,3})\]$/.exec(piece);
    const citation = number && answer.citations.find((one) => one.number === Number(number[1]));
    if (!citation) return document.createTextNode(piece);
    const mark = element("button", { type: "button", className: "cite", textContent: number[1], title: titleOf(citation, citation.document_id) });
    mark.classList.toggle("unverified", !citation.verified);
    mark.setAttribute("aria-label", `Citation ${number[1]}: ${titleOf(citation, citation.document_id)}`);
    mark.onclick = () => open(citation, context);
    return mark;
  }));
}

function citationButton(citation, context) {
  const tag = citation.verified
    ? element("span", { className: "tag good", textContent: "verified" })
    : element("span", { className: "tag bad", textContent: "not verified" });
  const words = element("span", {}, element("strong", { textContent: titleOf(citation, citation.document_id) }));
  if (citation.quote) words.append(element("q", { textContent: citation.quote.replace(/\s+/g, " ") }));
  const button = element("button", { type: "button" }, element("b", { textContent: `${citation.number}` }), words, tag);
  button.onclick = () => open(citation, context);
  return element("li", {}, button);
}

function showContext(details, context) {
  const count = context.parts.length;
  details.querySelector("summary").textContent =
    `Context: ${count} ${count === 1 ? "part" : "parts"}, ${context.used_tokens} of ${context.budget_tokens} tokens`
    + (context.left_out.length ? `, ${context.left_out.length} left out` : "");
  details.querySelector("ol").replaceChildren(
    ...context.parts.map((part) => element("li", {},
      element("span", { textContent: `${part.number ? `[${part.number}] ` : ""}${kindOf(part)} ${titleOf(part, part.reference)} · ${part.tokens} tokens` }),
      element("pre", { textContent: part.text, tabIndex: 0 }))),
    ...context.left_out.map((part) => element("li", { className: "out", textContent: `left out: ${kindOf(part)} ${titleOf(part, part.reference)} · ${part.tokens} tokens` })),
  );
}

function kindOf(part) {
  return part.kind.replace("PART_KIND_", "").replace("_", " ").toLowerCase();
}

async function rate(answer, vote) {
  const up = vote.dataset.up === "true";
  try {
    await json("/api/rate", {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify({ answer_id: answer.answer_id, conversation_id: answer.conversation_id, up }),
    });
    for (const other of vote.parentElement.children) other.setAttribute("aria-pressed", String(other === vote));
  } catch (error) {
    vote.title = error.message;
    vote.classList.add("failed");
  }
}

// Opening a citation ------------------------------------------------------------------------------------------------

$("reader-close").addEventListener("click", () => $("reader").close());
$("reader").addEventListener("click", (event) => { if (event.target === $("reader")) $("reader").close(); });

async function open(citation, context) {
  const part = context && context.parts.find((one) => one.number === citation.number);
  $("reader-title").textContent = titleOf(citation, citation.document_id);
  const about = [citation.document_id, citation.version && `version ${citation.version.slice(0, 12)}`];
  let text = "";
  let marked = null;
  if (part && part.kind !== "PART_KIND_KNOWLEDGE") {
    text = part.text;
  } else {
    try {
      const query = new URLSearchParams({ id: citation.document_id, version: citation.version });
      for (const label of form.access.value.split(",")) if (label.trim()) query.append("access", label.trim());
      const found = await json(`/api/document?${query}`);
      text = found.text;
      if (citation.end > citation.start) marked = [citation.start, citation.end];
      const live = part && /\nNow: (.*)$/s.exec(part.text);
      if (live) about.push(`live when asked: ${live[1]}`);
    } catch (error) {
      about.push(error.message);
      text = citation.quote;
    }
  }
  about.push(citation.verified ? "the quoted words were found there" : "the quoted words could not be verified");
  $("reader-about").textContent = about.filter(Boolean).join(" · ");
  highlight($("reader-text"), text, marked || within(text, citation.quote));
  $("reader").showModal();
  const mark = $("reader-text").querySelector("mark");
  if (mark) mark.scrollIntoView({ block: "center" });
}

function within(text, quote) {
  const place = quote ? text.indexOf(quote) : -1;
  if (place < 0) return null;
  const start = Array.from(text.slice(0, place)).length;
  return [start, start + Array.from(quote).length];
}

// Places count Unicode characters, as the server's do; JavaScript's strings count UTF-16 units.
function highlight(target, text, place) {
  const characters = Array.from(text);
  if (!place) { target.textContent = text; return; }
  target.replaceChildren(
    characters.slice(0, place[0]).join(""),
    element("mark", { textContent: characters.slice(...place).join("") }),
    characters.slice(place[1]).join(""),
  );
}

// The profile -------------------------------------------------------------------------------------------------------

async function showProfile() {
  const who = form.as.value.trim();
  const target = $("profile");
  if (!who) {
    target.replaceChildren(element("p", { className: "dim", textContent: "Say who asks (as) to see the profile and where each field is from." }));
    return;
  }
  try {
    const { profile } = await json(`/api/profile?${new URLSearchParams({ as: who })}`);
    if (form.as.value.trim() === who) target.replaceChildren(...profileNodes(profile));
  } catch (error) {
    target.replaceChildren(element("p", { className: "dim", textContent: error.message }));
  }
}

function profileNodes(profile) {
  const named = ["full_name", "name", "display_name"].find((name) => profile.fields[name]);
  const who = element("div", { className: "who" });
  if (named) who.append(element("strong", { textContent: plain(profile.fields[named].value_json) }));
  who.append(element("code", { textContent: `${profile.profile_id} v${profile.version}` }));
  if (profile.suspect) who.append(element("span", { className: "tag bad", textContent: "suspect: not used in answers" }));
  const fields = element("dl", { className: "fields" }, ...Object.keys(profile.fields).sort().map((name) => {
    const field = profile.fields[name];
    const from = element("small", { textContent: `${field.record}${field.occurred_at ? ` · ${moment(field.occurred_at)}` : ""}` });
    return element("div", {}, element("dt", { textContent: name.replaceAll("_", " ") }), element("dd", { textContent: plain(field.value_json) }, from));
  }));
  const rows = element("details", { className: "rows" },
    element("summary", { textContent: `${profile.records.length} records` }),
    ...profile.records.map((record) => element("pre", { textContent: `${record.record}\n${lines(record.row_json)}` })));
  return [who, fields, rows];
}

function plain(text) {
  try {
    const value = JSON.parse(text);
    if (Array.isArray(value)) return value.join(", ");
    return value !== null && typeof value === "object" ? lines(text) : String(value);
  } catch { return text; }
}

function lines(text) {
  try {
    return Object.entries(JSON.parse(text)).filter(([, value]) => value !== null)
      .map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join("\n");
  } catch { return text; }
}

// Freshness ---------------------------------------------------------------------------------------------------------

async function readStatus() {
  if (document.hidden) return;
  try {
    state.status = await json("/api/status");
    state.statusAt = performance.now();
    pulse("live", "live");
    offerExamples();
  } catch {
    pulse("lost", "connection lost, trying again");
  }
  showFreshness();
}

function pulse(kind, words) {
  $("pulse").className = `pulse ${kind}`;
  if ($("pulse").textContent !== words) $("pulse").textContent = words;
}

function showFreshness() {
  const { status } = state;
  if (!status) return;
  const now = status.now_ms + performance.now() - state.statusAt;
  const stores = status.freshness;
  const sources = [...new Set(stores.flatMap((store) => store.sources.map((source) => source.source)))].sort();
  const head = element("tr", {}, element("th", { textContent: "source", scope: "col" }), ...stores.map((store) =>
    element("th", { scope: "col" }, element("b", { textContent: store.store.split("_")[0] }), behind(store.behind, ["0 behind", "behind"]))));
  const rows = sources.map((name) => element("tr", {}, element("td", { textContent: name }), ...stores.map((store) =>
    ageCell(store.sources.find((source) => source.source === name), now))));
  const table = element("table", { className: "fresh" },
    element("caption", { textContent: sources.length ? "Current to so long ago, by what the sources say of themselves." : "No source has been heard of yet." }),
    element("thead", {}, head), element("tbody", {}, ...rows));
  $("freshness").replaceChildren(table,
    ...status.missing.map((missing) => element("p", { className: "dim", textContent: `without ${missing}` })));
}

function ageCell(source, now) {
  if (!source) return element("td", { textContent: "–" });
  const old = now - Date.parse(source.as_of);
  const cell = element("td", { textContent: Number.isNaN(old) ? "–" : age(old), title: `current to ${source.as_of}, ${age(old)} ago` });
  if (source.heartbeat_at && old > 60000) cell.className = "old";
  return cell;
}

function offerExamples() {
  const sources = new Set(state.status.freshness.flatMap((store) => store.sources.map((source) => source.source)));
  if ($("examples").childElementCount || !sources.has("bookings") || !sources.has("inventory")) return;
  $("examples").replaceChildren(...EXAMPLES.map((text) => element("button", { type: "button", textContent: text, onclick: () => {
    if (!form.as.value) {
      form.as.value = "email:ada.lindqvist@fjordmail.example";
      remember("as", form.as.value);
      showProfile();
    }
    ask(text);
  } })));
}

// KPIs --------------------------------------------------------------------------------------------------------------

async function showKpis() {
  let found;
  try {
    found = (await json("/api/kpis")).kpis.filter((kpi) => kpi.value !== undefined && Object.keys(kpi.dimensions).length === 0);
  } catch (error) {
    $("kpis").replaceChildren(element("p", { className: "dim", textContent: error.message }));
    return;
  }
  const newest = new Map();
  for (const kpi of found) {
    const known = newest.get(kpi.kpi);
    if (!known || kpi.window_end > known.window_end) newest.set(kpi.kpi, kpi);
  }
  if (!newest.size) return;
  $("kpis").replaceChildren(...[...newest.values()].sort((a, b) => a.kpi.localeCompare(b.kpi)).map((kpi) =>
    element("div", { className: "kpi", title: `window ${kpi.window_start} to ${kpi.window_end}, revision ${kpi.revision}` },
      element("b", { textContent: shown(kpi) }),
      element("span", { textContent: `${kpi.kpi.replaceAll("_", " ")} · ${kpi.count}` }))));
}

function shown(kpi) {
  const value = Number(kpi.value);
  if (kpi.kpi.startsWith("latency")) return `${Math.round(value)} ms`;
  if (/^(satisfaction|dissatisfaction|answer_rate|retrieval_quality)$/.test(kpi.kpi)) return `${Math.round(value * 100)} %`;
  return value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 10 ? 3 : 0 });
}

// Live events -------------------------------------------------------------------------------------------------------

const changed = { profiles: debounced(showProfile, 150), kpis: debounced(showKpis, 300) };

function listen() {
  const source = new EventSource("/api/events");
  let first = true;
  source.onmessage = ({ data }) => {
    const news = JSON.parse(data);
    addEvents(news.events, !first);
    if (!first) {
      if (news.counts.profiles || news.counts.changes) changed.profiles();
      if (news.counts.kpis || news.counts.ratings) changed.kpis();
      const total = Object.values(news.counts).reduce((sum, count) => sum + count, 0);
      $("rate").textContent = total > news.events.length ? `${total.toLocaleString("en")} just now, the newest shown` : "";
    }
    first = false;
  };
  // EventSource connects again by itself; the server then shows a little of what was before.
  source.onerror = () => { first = true; $("events").replaceChildren(); };
}

function addEvents(events, fresh) {
  const list = $("events");
  for (const event of events.filter(({ kind }) => !state.hidden.has(kind))) {
    const at = new Date(event.at);
    const item = element("li", { className: fresh ? "new" : "", title: event.place },
      element("span", { className: "kind", textContent: event.kind }),
      element("span", { className: "title", textContent: event.title }),
      element("time", { textContent: at.toLocaleTimeString("en-GB"), dateTime: at.toISOString() }),
      element("span", { className: "detail", textContent: event.detail }));
    item.dataset.kind = event.kind;
    list.prepend(item);
  }
  while (list.childElementCount > EVENTS_MAX) list.lastElementChild.remove();
}

$("filters").replaceChildren(...KINDS.map((kind) => {
  const button = element("button", { type: "button", textContent: kind });
  button.setAttribute("aria-pressed", String(!state.hidden.has(kind)));
  button.onclick = () => {
    const hide = !state.hidden.delete(kind);
    if (hide) state.hidden.add(kind);
    button.setAttribute("aria-pressed", String(!hide));
    remember("hidden", JSON.stringify([...state.hidden]));
    for (const item of [...$("events").children]) if (hide && item.dataset.kind === kind) item.remove();
  };
  return button;
}));

// Beginning ---------------------------------------------------------------------------------------------------------

async function resume() {
  if (!state.conversation) return;
  try {
    const { turns } = await json(`/api/conversation?${new URLSearchParams({ id: state.conversation })}`);
    for (const turn of turns) {
      const answer = { ...turn, text: turn.answer, missing: turn.context.missing, freshness: turn.context.freshness };
      show(newTurn(turn.question), answer);
    }
  } catch { /* the conversation is gone: the next question begins a new one */ }
}

form.as.value = recall("as");
showProfile();
showKpis();
listen();
resume();
readStatus();
setInterval(readStatus, STATUS_EVERY_MS);
setInterval(showFreshness, 500);
