"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  const source = document.getElementById("data");
  if (!source) return;
  const PAGE = 25;
  const CLAMP_CHARS = 620;
  // More rows than this are a book, and minutes for a browser to lay out.
  const PRINT_ROWS = 1000;
  // Columns of a row.
  const ID = 0, PREFIX = 1, STATUS = 2, LENGTH = 3, WORDS = 4, SURE = 5, LANGUAGE = 6, FLAGS = 7, LINK = 8, TEXT = 9, TIMES = 10;
  // The first page of rows lies here; the others follow this script, packed, and are taken in when the page is there.
  const data = JSON.parse(source.textContent);
  const rows = data.rows;
  const $ = (id) => document.getElementById(id);
  const body = $("rows").tBodies[0];
  const state = { terms: [], prefix: "", kind: "", sort: ID, down: false, page: 0 };
  let found = rows;
  let complete = rows.length === data.count;
  let waiting = null;

  const fold = (text) => text.normalize("NFKC").toLowerCase().replaceAll("\u2019", "'");
  const haystacks = new Map();
  const haystack = (row) => {
    let text = haystacks.get(row);
    if (text === undefined) {
      text = fold([row[ID], row[STATUS], row[LANGUAGE] || "", row[FLAGS].join(" "), row[TEXT].replaceAll("\n", " ")].join(" "));
      haystacks.set(row, text);
    }
    return text;
  };

  const element = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const clock = (seconds) => {
    const s = Math.floor(seconds);
    const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60, rest = String(s % 60).padStart(2, "0");
    return h ? `${h}:${String(m).padStart(2, "0")}:${rest}` : `${m}:${rest}`;
  };
  const length = (seconds) => seconds === null ? "–" : seconds < 60 ? `${seconds.toFixed(1)} s` : clock(seconds);

  const marked = (parent, text) => {
    // Folding may change lengths (ligatures, wide letters): highlight only where it does not.
    const low = text.toLowerCase().replaceAll("\u2019", "'");
    let at = 0;
    while (state.terms.length && low.length === text.length && at < text.length) {
      let next = -1, size = 0;
      for (const term of state.terms) {
        const i = low.indexOf(term, at);
        if (i >= 0 && (next < 0 || i < next || (i === next && term.length > size))) { next = i; size = term.length; }
      }
      if (next < 0) break;
      if (next > at) parent.append(text.slice(at, next));
      parent.append(element("mark", "", text.slice(next, next + size)));
      at = next + size;
    }
    parent.append(text.slice(at));
  };

  const seek = (audio, seconds) => {
    const go = () => { audio.currentTime = seconds; };
    if (audio.readyState >= 1) go();
    else { audio.addEventListener("loadedmetadata", go, { once: true }); audio.load(); }
    // A file that cannot be played is told of by the error event.
    audio.play().catch(() => {});
  };

  const player = (row, cell) => {
    const audio = element("audio");
    audio.controls = true;
    audio.preload = "none";
    audio.src = row[LINK];
    audio.setAttribute("aria-label", `Recording ${row[ID]}`);
    audio.addEventListener("error", () => {
      const why = row[LINK].includes("://") ? "has its link run out? Write the report anew." : "is the mirror folder still beside the report?";
      if (!cell.querySelector(".bad")) cell.append(element("span", "note bad", `This recording cannot be played; ${why}`));
    });
    audio.addEventListener("play", () => {
      for (const other of body.querySelectorAll("audio")) if (other !== audio) other.pause();
    });
    return audio;
  };

  const draw = (row) => {
    const line = element("tr");
    const file = element("th");
    file.scope = "row";
    const slash = row[ID].lastIndexOf("/") + 1;
    if (slash) {
      const folder = element("bdi", "folder");
      marked(folder, row[ID].slice(0, slash));
      file.append(folder);
    }
    const name = element("bdi");
    marked(name, row[ID].slice(slash) || row[ID]);
    file.append(name);
    let audio = null;
    if (row[LINK] === null) file.append(element("span", "note", "no recording beside this report"));
    else { audio = player(row, file); file.append(audio); }

    const cell = element("td");
    const text = element("div", "text");
    text.dir = "auto";
    if (row[LANGUAGE]) text.lang = row[LANGUAGE];
    const timed = [];
    // A line for each segment, and no times where the segments are not known.
    const pieces = row[TEXT] ? row[TEXT].split("\n") : [];
    pieces.forEach((words, i) => {
      const [start = null, end = null] = row[TIMES].slice(2 * i, 2 * i + 2);
      if (i) text.append(" ");
      const long = row[LENGTH] >= 3600;
      if (audio && start !== null) {
        const piece = element("button", pieces.length === 1 ? "piece alone" : long ? "piece hours" : "piece");
        piece.type = "button";
        piece.dataset.start = start;
        piece.title = `Play from ${clock(start)}`;
        const at = element("span", "at", clock(start));
        at.setAttribute("aria-hidden", "true");
        if (pieces.length > 1) piece.append(at);
        const said = element("span");
        marked(said, words);
        piece.append(said);
        piece.addEventListener("click", () => seek(audio, start));
        text.append(piece);
        timed.push([start, end, piece]);
      } else {
        const piece = element("span");
        marked(piece, words);
        text.append(piece);
      }
    });
    if (!pieces.length) text.append(element("span", "silent", "no speech"));
    cell.append(text);
    if (audio) {
      audio.addEventListener("timeupdate", () => {
        const t = audio.currentTime;
        for (const [start, end, piece] of timed) piece.classList.toggle("playing", t >= start && t < end && !audio.ended);
      });
      audio.addEventListener("ended", () => { for (const [, , piece] of timed) piece.classList.remove("playing"); });
    }
    if (row[TEXT].length > CLAMP_CHARS) {
      text.classList.add("clamped");
      const more = element("button", "more", "Show all");
      more.type = "button";
      more.setAttribute("aria-expanded", "false");
      more.addEventListener("click", () => {
        const open = !text.classList.toggle("clamped");
        more.setAttribute("aria-expanded", String(open));
        more.textContent = open ? "Show less" : "Show all";
      });
      // A control inside the clamped part must not take the focus out of sight.
      text.addEventListener("focusin", () => { if (text.classList.contains("clamped")) more.click(); });
      cell.append(more);
    }
    const tags = element("div", "tags");
    if (row[STATUS] !== "ok") {
      const badge = element("span", `badge s-${row[STATUS]}`, row[STATUS]);
      badge.title = data.statuses[row[STATUS]] || "";
      tags.append(badge);
    }
    for (const flag of row[FLAGS]) {
      const tag = element("span", "tag", flag.replaceAll("_", " "));
      tag.title = data.flags[flag] || "";
      tags.append(tag);
    }
    if (tags.childNodes.length) cell.append(tags);

    const number = (shown, unit) => {
      const td = element("td", "n", shown);
      td.dataset.unit = unit;
      return td;
    };
    line.append(file, cell, number(length(row[LENGTH]), ""), number(row[WORDS] === null ? "–" : row[WORDS].toLocaleString("en"), " words"));
    const sure = number(row[SURE] === null ? "–" : `${Math.round(100 * row[SURE])} %`, " sure");
    if (row[SURE] !== null) {
      const meter = $("meter").content.cloneNode(true);
      meter.querySelector("rect").setAttribute("width", `${100 * row[SURE]}%`);
      sure.append(meter);
    }
    line.append(sure);
    return line;
  };

  const show = () => {
    const count = complete ? found.length : data.count;
    const pages = Math.max(1, Math.ceil(count / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const from = state.page * PAGE;
    for (const audio of body.querySelectorAll("audio")) audio.pause();
    added = [];
    body.replaceChildren(...found.slice(from, from + PAGE).map(draw));
    $("found").textContent = count === data.count
      ? `${data.count.toLocaleString("en")} ${data.count === 1 ? "transcript" : "transcripts"}`
      : `${count.toLocaleString("en")} of ${data.count.toLocaleString("en")} transcripts match`;
    $("pages").hidden = pages === 1;
    $("page").textContent = `Page ${state.page + 1} of ${pages}`;
    $("previous").disabled = state.page === 0;
    $("next").disabled = state.page === pages - 1;
  };

  // Paper has no pages to turn: what was found is printed as a whole, around the rows that are here already.
  let added = [];
  const spread = () => {
    gather();
    const from = state.page * PAGE;
    const first = Math.max(0, Math.min(from, found.length - PRINT_ROWS));
    const before = found.slice(first, from).map(draw), after = found.slice(from + PAGE, first + PRINT_ROWS).map(draw);
    body.prepend(...before);
    body.append(...after);
    added = [...before, ...after];
    if (found.length > PRINT_ROWS) $("cut").textContent = ` · ${PRINT_ROWS.toLocaleString("en")} of them are printed`;
  };
  const gather = () => {
    for (const line of added) line.remove();
    added = [];
    $("cut").textContent = "";
  };
  window.addEventListener("beforeprint", spread);
  window.addEventListener("afterprint", gather);

  const select = () => {
    found = rows.filter((row) =>
      (state.prefix === "" || row[PREFIX] === state.prefix.slice(1)) &&
      (state.kind === "" || (row[FLAGS].length > 0) === (state.kind === "flagged")) &&
      state.terms.every((term) => haystack(row).includes(term)));
    const by = state.sort, sign = state.down ? -1 : 1;
    // The rows come in the order of their names; a sort keeps it among equals.
    if (by === ID) { if (state.down) found.reverse(); }
    else found.sort((a, b) => {
      const x = a[by], y = b[by];
      // What is unknown comes last, whichever way round.
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (x - y);
    });
    state.page = 0;
    $("sort").value = String(by);
    $("direction").textContent = state.down ? "↓" : "↑";
    $("direction").setAttribute("aria-pressed", String(state.down));
    for (const button of document.querySelectorAll("#rows thead button")) {
      const head = button.parentElement;
      if (Number(button.dataset.sort) === by) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    show();
  };

  // What needs every row waits until they are there; of several requests the last one counts.
  const later = (act) => {
    if (complete) { act(); return; }
    waiting = act;
    $("found").textContent = "Unpacking the transcripts …";
  };
  const update = () => later(select);
  const search = (text) => { state.terms = fold(text).split(/\s+/u).filter(Boolean); update(); };
  let timer = 0;
  $("q").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => search($("q").value), 120); });
  $("tools").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(timer); search($("q").value); });
  // A prefix may be empty (the bucket's root): the mark tells it from "all".
  for (const prefix of data.prefixes) {
    const option = element("option", "", prefix || "(root)");
    option.value = "=" + prefix;
    $("prefix").append(option);
  }
  $("prefix").addEventListener("change", () => { state.prefix = $("prefix").value; update(); });
  $("kind").addEventListener("change", () => { state.kind = $("kind").value; update(); });
  $("sort").addEventListener("change", () => { state.sort = Number($("sort").value); update(); });
  $("direction").addEventListener("click", () => { state.down = !state.down; update(); });
  for (const button of document.querySelectorAll("#rows thead button")) {
    button.addEventListener("click", () => {
      const by = Number(button.dataset.sort);
      state.down = by === state.sort ? !state.down : false;
      state.sort = by;
      update();
    });
  }
  const turn = (by) => later(() => { state.page += by; show(); $("transcripts").scrollIntoView(); });
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  for (const link of document.querySelectorAll("[data-query]")) {
    link.addEventListener("click", () => { $("q").value = link.dataset.query; search(link.dataset.query); });
  }
  // To the row itself, whatever was filtered before, and not only to its section.
  const open = (id) => {
    $("prefix").value = state.prefix = ""; $("kind").value = state.kind = ""; $("q").value = ""; state.terms = [];
    select();
    const at = found.findIndex((row) => row[ID] === id);
    if (at < 0) return;
    state.page = Math.floor(at / PAGE);
    show();
    const line = body.rows[at % PAGE];
    line.classList.add("chosen");
    line.scrollIntoView({ block: "center" });
    (line.querySelector(".piece") || line.querySelector("audio") || $("q")).focus({ preventScroll: true });
  };
  for (const link of document.querySelectorAll("[data-open]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      later(() => open(link.dataset.open));
    });
  }
  for (const link of document.querySelectorAll("[data-prefix]")) {
    link.addEventListener("click", () => {
      const value = "=" + link.dataset.prefix;
      if ([...$("prefix").options].some((option) => option.value === value)) { $("prefix").value = value; state.prefix = value; update(); }
    });
  }

  const bytes = (text) => Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const finished = () => { performance.mark("rows-complete"); $("browser").dataset.rows = "complete"; };
  const unpack = async () => {
    const texts = [...document.querySelectorAll("script.rows")].map((packed) =>
      new Response(new Blob([bytes(packed.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"))).text());
    for (const text of texts) rows.push(...JSON.parse(await text));
    complete = true;
    finished();
    if (waiting) { waiting(); waiting = null; } else found = rows.slice();
    prepare(0);
  };
  // The text that a search looks through, made while nothing else is to do.
  const prepare = (from) => {
    if (from >= rows.length) return;
    (window.requestIdleCallback || setTimeout)((idle) => {
      let at = from;
      do { for (const end = Math.min(at + 50, rows.length); at < end; at++) haystack(rows[at]); }
      while (at < rows.length && idle && idle.timeRemaining() > 5);
      prepare(at);
    });
  };
  $("browser").hidden = false;
  show();
  performance.mark("rows-shown");
  if (!complete) {
    document.addEventListener("DOMContentLoaded", () => {
      unpack().catch(() => {
        $("found").textContent = `This browser cannot unpack more than the first ${rows.length} transcripts; use a newer one, or the exports.`;
      });
    });
  } else finished();
})();
