"""The page of `smd view`: markup, style and script in one string, without a single reference to anything outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sm_diffusion.app.commands.recording import FORMAT
from sm_diffusion.files import read_json
from sm_diffusion.types import UserError

_KEYS = ("checkpoint", "variant", "sampler", "seed", "states", "mask_id", "tokens", "rows")

_STYLE = """
:root{--bg:#fbfbf9;--fg:#1d2126;--dim:#6a7380;--line:#d9dce0;--card:#fff;--mask:#e4e6ea;--soft:0,114,178;
--drawn:#bfe6cf;--drawnfg:#0b4a2b;--re:#f7c9b4;--refg:#7a2600;--given:#efe6c8;--givenfg:#4d3f00}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e8ea;--dim:#98a2ae;--line:#343a41;--card:#1c2024;
--mask:#2b3037;--soft:86,180,233;--drawn:#1d4a33;--drawnfg:#c9f2da;--re:#5d2b17;--refg:#ffd9c7;--given:#453c1c;
--givenfg:#f5eac0}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
header{position:sticky;top:0;background:var(--bg);border-bottom:1px solid var(--line);padding:10px 20px;z-index:1}
.bar{display:flex;gap:12px;align-items:center;flex-wrap:wrap}
h1{font-size:16px;margin:0 auto 0 0}
#step{flex:1 1 240px;accent-color:rgb(var(--soft))}
button,select{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:6px;
padding:2px 10px}
button:focus-visible,select:focus-visible,input:focus-visible,.t:focus-visible{outline:2px solid rgb(var(--soft))}
#count{font-variant-numeric:tabular-nums;min-width:11em}
.key{display:flex;gap:14px;flex-wrap:wrap;color:var(--dim);font-size:13px;margin-top:6px}
.key .t{padding:0 6px}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:16px;padding:16px 20px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px;min-width:0}
h2{font-size:15px;margin:0}
.about{color:var(--dim);font-size:13px;margin:0 0 10px;overflow-wrap:anywhere}
.text{font:15px/1.9 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.t{border-radius:4px;padding:1px 0;cursor:default}
.masked{background:var(--mask);color:var(--dim)}
.soft{font-style:italic;border-radius:0;box-shadow:inset 0 -2px rgb(var(--soft))}
.drawn{background:var(--drawn);color:var(--drawnfg)}
.remasked{background:var(--re);color:var(--refg)}
.given{background:var(--given);color:var(--givenfg)}
.end{color:var(--dim)}
.meter{height:4px;background:var(--mask);border-radius:2px;margin-bottom:12px}
.meter i{display:block;height:100%;background:rgb(var(--soft));border-radius:2px}
#tip{position:fixed;pointer-events:none;background:var(--fg);color:var(--bg);border-radius:8px;padding:8px 10px;
font-size:13px;max-width:300px;z-index:2}
#tip[hidden]{display:none}
#tip td{padding:0 6px 0 0;white-space:pre}
#tip .w{display:inline-block;height:8px;background:rgb(var(--soft));border-radius:2px}
"""

_BODY = """
<header><div class="bar"><h1>__TITLE__</h1>
<label id="which">text <select id="row"></select></label>
<button id="play" aria-label="play or stop">play</button>
<input id="step" type="range" min="0" value="0" aria-label="step">
<output id="count" for="step"></output></div>
<div class="key"><span><span class="t masked">&#9617;</span> masked</span>
<span><span class="t soft">a</span> soft: most probable token of the blend, bluer for a larger &lambda;</span>
<span><span class="t drawn">a</span> new token</span><span><span class="t">a</span> fixed</span>
<span><span class="t remasked">&#9617;</span> masked again</span><span><span class="t given">a</span> given</span>
<span>&larr; &rarr; step, Home, End, space plays</span></div></header>
<main id="panels"></main><div id="tip" role="status" hidden></div>
"""

_SCRIPT = r"""
const runs = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const make = (tag, cls, text) => {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  if (text !== undefined) e.textContent = text;
  return e;
};
const step = $('step'), row = $('row'), tip = $('tip');
const show = t => t === '' ? '\u2205' : t;
const shared = Math.min(...runs.map(r => r.rows.length));
for (let i = 0; i < shared; i++) row.append(make('option', '', String(i + 1)));
if (shared === 1) $('which').hidden = true;
const panels = runs.map(run => {
  const box = make('section');
  const o = run.omegas, s = run.sampler;
  box.append(make('h2', '', run.variant === 'soft_masked' ? 'soft-masked (SM)' : 'binary masks (MDLM)'));
  const about = make('p', 'about'), meter = make('div', 'meter'), fill = make('i'), text = make('div', 'text');
  const fixed = ['sampler ' + s.name, s.temperature !== 1 ? 'temperature ' + s.temperature : '',
    s.top_p !== 1 ? 'top-p ' + s.top_p : '', 'seed ' + run.seed,
    o ? 'omega s ' + o.omega_s.toFixed(2) + ', a ' + o.omega_a.toFixed(2) + ', b ' + o.omega_b.toFixed(2) : '',
    run.checkpoint].filter(Boolean).join(' \u00b7 ');
  meter.append(fill); box.append(about, meter, text); $('panels').append(box);
  return {run, about, fill, text, fixed};
});
const frames = p => p.run.rows[Number(row.value || 1) - 1].frames;
function span(p, frame, l) {
  const state = p.run.states[frame.state[l]], soft = frame.soft[l], id = frame.ids[l];
  if (state === 'padding') return null;
  const masked = id === p.run.mask_id;
  let text = masked ? '\u2591' : show(p.run.tokens[id]);
  const e = make('span', 't ' + (state === 'kept' ? '' : state));
  if (masked && soft && soft.blend.length) {
    if (state === 'soft') {
      text = show(p.run.tokens[soft.blend[0][0]]);
      e.style.background = 'rgba(var(--soft),' + (0.06 + 0.5 * soft.lambda).toFixed(3) + ')';
      e.style.opacity = (0.55 + 0.45 * soft.lambda).toFixed(3);
    }
  }
  e.textContent = text.replace(/\n/g, '\u21b5\n');
  e.dataset.l = l;
  return e;
}
function explain(p, l) {
  const frame = p.now, state = p.run.states[frame.state[l]], soft = frame.soft[l];
  const names = {drawn: 'new token', kept: 'fixed', remasked: 'masked again'};
  tip.replaceChildren(make('b', '', 'position ' + l + ': ' + (names[state] || state)));
  const line = (t) => tip.append(make('div', '', t));
  if (frame.ids[l] !== p.run.mask_id) line(JSON.stringify(p.run.tokens[frame.ids[l]]) + ', id ' + frame.ids[l]);
  else if (!soft) line('the network sees the mask embedding');
  if (soft) {
    line('\u03bb ' + soft.lambda.toFixed(3) + ', mask ' + (1 - soft.lambda).toFixed(3));
    const table = make('table');
    for (const [id, share] of soft.blend) {
      const tr = make('tr'), bar = make('span', 'w'), cell = make('td');
      bar.style.width = (80 * share).toFixed(1) + 'px'; cell.append(bar);
      tr.append(make('td', '', JSON.stringify(p.run.tokens[id])), make('td', '', (100 * share).toFixed(1) + '%'), cell);
      table.append(tr);
    }
    tip.append(table);
  }
}
function draw() {
  tip.hidden = true;
  for (const p of panels) {
    const list = frames(p), frame = list[Math.min(Number(step.value), list.length - 1)];
    p.now = frame;
    p.text.replaceChildren(...frame.ids.map((_, l) => span(p, frame, l)).filter(Boolean));
    const open = frame.ids.filter((id, l) => id === p.run.mask_id && p.run.states[frame.state[l]] !== 'padding').length;
    const done = frame === list[list.length - 1];
    const nfe = p.run.rows[Number(row.value || 1) - 1].nfe;
    p.about.textContent = (done ? 'finished after ' + nfe + ' network evaluations' : 'step ' + frame.step + ', t ' +
      frame.time.toFixed(3) + ', ' + open + ' masks left') + ' \u00b7 ' + p.fixed;
    p.fill.style.width = 100 * (1 - open / frame.ids.length) + '%';
  }
  $('count').textContent = 'frame ' + step.value + ' of ' + step.max;
}
function resize() { step.max = Math.max(...panels.map(p => frames(p).length)) - 1; draw(); }
let timer = 0;
function stop() { clearInterval(timer); timer = 0; $('play').textContent = 'play'; }
function move(by) { step.value = Math.max(0, Math.min(Number(step.max), Number(step.value) + by)); draw(); }
function play() {
  if (timer) return stop();
  if (step.value === step.max) step.value = 0;
  $('play').textContent = 'stop';
  timer = setInterval(() => { move(1); if (step.value === step.max) stop(); }, 120);
}
step.addEventListener('input', draw);
row.addEventListener('change', resize);
$('play').addEventListener('click', play);
addEventListener('keydown', e => {
  const by = {ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9, PageUp: -10, PageDown: 10}[e.key];
  if (e.target === row) return;
  if (by) { e.preventDefault(); stop(); move(by); }
  else if (e.key === ' ' && e.target !== $('play')) { e.preventDefault(); play(); }
});
for (const p of panels) {
  p.text.addEventListener('mousemove', e => {
    const l = e.target.dataset.l;
    if (l === undefined) { tip.hidden = true; return; }
    explain(p, Number(l)); tip.hidden = false;
    tip.style.left = Math.max(4, Math.min(e.clientX + 14, innerWidth - tip.offsetWidth - 8)) + 'px';
    tip.style.top = Math.max(4, Math.min(e.clientY + 16, innerHeight - tip.offsetHeight - 8)) + 'px';
  });
  p.text.addEventListener('mouseleave', () => { tip.hidden = true; });
}
const [wanted, at] = location.hash.slice(1).split(':');
resize();
if (wanted) { step.value = wanted; draw(); }
if (at) {
  const p = panels[panels.length - 1], e = p.text.querySelector('[data-l="' + Number(at) + '"]');
  if (e) {
    const r = e.getBoundingClientRect();
    e.dispatchEvent(new MouseEvent('mousemove', {bubbles: true, clientX: r.left, clientY: r.bottom - 8}));
  }
}
"""

# "#12" opens the page at frame 12, "#12:5" also shows the blend of position 5.
PAGE = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    "<title>Denoising: __TITLE__</title><style>" + _STYLE + "</style></head><body>" + _BODY
    + '<script id="data" type="application/json">__DATA__</script><script>' + _SCRIPT + "</script></body></html>\n"
)


def read_recording(path: Path) -> dict[str, Any]:
    """A file of `smd sample --json`; UserError naming it for anything else."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT or any(key not in found for key in _KEYS):
        raise UserError(f"{path}: not a recording; make one with: smd sample CHECKPOINT --json {path.name}")
    if not found["rows"]:
        raise UserError(f"{path}: holds no text")
    return found


def build_page(recordings: list[dict[str, Any]]) -> str:
    """The page with its data inside. No `<` of the data can end the script element it lies in."""
    data = json.dumps(recordings, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    title = " and ".join(f"{recording['variant']}, {recording['sampler']['name']}" for recording in recordings)
    safe = title.replace("&", "&amp;").replace("<", "&lt;")
    return PAGE.replace("__TITLE__", safe).replace("__DATA__", data)
