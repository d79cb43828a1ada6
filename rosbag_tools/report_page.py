"""The frame of report.html: style, layout and the few lines of script. Filled in by report.py."""

STYLE = """
:root { --ink:#e8eaf0; --dim:#9aa3b5; --back:#12141c; --card:#1b1f2b; --line:#2c3243;
        --multi:#35b8a6; --single:#f0a94b; --accent:#7aa2ff; }
* { box-sizing:border-box; }
body { margin:0; background:var(--back); color:var(--ink);
       font:15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width:1180px; margin:0 auto; padding:28px 20px 60px; }
h1 { font-size:26px; margin:0 0 2px; font-weight:650; }
h2 { font-size:17px; margin:34px 0 10px; font-weight:600; }
p.sub, .dim { color:var(--dim); } p.sub { margin:0 0 20px; }
code { font:13px ui-monospace, Menlo, Consolas, monospace; background:#0d0f15; padding:2px 6px;
       border-radius:4px; overflow-wrap:anywhere; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:12px; }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px;
        padding:12px 16px; }
.card b { display:block; font-size:25px; font-weight:650; line-height:1.25; }
.card span { color:var(--dim); font-size:13px; }
.stage { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:14px; }
.views { display:grid; grid-template-columns:1fr 1fr; gap:10px; }
@media (max-width:700px) { .views { grid-template-columns:1fr; } }
figure { margin:0; position:relative; }
figure img { width:100%; display:block; border-radius:6px; background:#000; }
figcaption { position:absolute; left:8px; top:6px; font-size:12px; padding:1px 8px;
             background:#000a; border-radius:4px; }
.controls { display:flex; gap:12px; align-items:center; margin:12px 2px 2px; }
.controls input { flex:1; accent-color:var(--accent); }
button { background:#2b3350; color:var(--ink); border:1px solid #3d476a; border-radius:7px;
         padding:5px 14px; font:inherit; cursor:pointer; min-width:76px; }
#caption { font-variant-numeric:tabular-nums; font-size:14px; min-height:22px; }
.tag { display:inline-block; padding:0 9px; border-radius:9px; font-size:13px; color:#10131a;
       font-weight:600; }
.tag.multi_frame { background:var(--multi); } .tag.single_frame { background:var(--single); }
.tag.none { background:#596075; color:#fff; }
.scales { display:flex; gap:26px; flex-wrap:wrap; margin-top:10px; font-size:12px;
          color:var(--dim); }
.scale i { display:block; width:230px; height:9px; border-radius:3px; margin:2px 0; }
.scale div { display:flex; justify-content:space-between; }
svg { width:100%; height:auto; display:block; background:var(--card);
      border:1px solid var(--line); border-radius:12px; }
svg text { fill:var(--dim); font:11px system-ui, sans-serif; }
.strip { display:grid; grid-template-columns:repeat(4,1fr); gap:10px; }
@media (max-width:700px) { .strip { grid-template-columns:1fr 1fr; } }
.strip div { cursor:pointer; font-size:12px; color:var(--dim); }
.strip img { width:100%; display:block; border-radius:5px; margin-bottom:2px; }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th, td { padding:5px 10px; text-align:right; border-bottom:1px solid var(--line); }
th:first-child, td:first-child { text-align:left; } th { color:var(--dim); font-weight:500; }
tr.ours td { color:#fff; font-weight:600; } tr.other td { color:var(--dim); }
.two { display:grid; grid-template-columns:1fr 1fr; gap:24px; }
@media (max-width:800px) { .two { grid-template-columns:1fr; } }
dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 16px; margin:0; font-size:14px; }
dt { color:var(--dim); } dd { margin:0; overflow-wrap:anywhere; }
"""

SCRIPT = """
const frames = JSON.parse(document.getElementById('frames').textContent);
const slider = document.getElementById('slider'), caption = document.getElementById('caption');
const cursor = document.getElementById('cursor'), button = document.getElementById('play');
let now = 0, timer = null;
function text(value, digits, unit) {
  return value === null ? '\\u2013' : value.toFixed(digits) + unit;
}
function show(i) {
  now = Math.max(0, Math.min(frames.length - 1, i));
  const f = frames[now];
  for (const kind of ['image', 'depth', 'truth', 'error']) {
    const img = document.getElementById(kind);
    if (img && f[kind]) img.src = f[kind];
  }
  const tag = document.createElement('span');
  tag.className = 'tag ' + (f.model || 'none');
  tag.textContent = f.model ? f.model.replace('_', '-') + ' \\u00b7 ' + f.reason : 'no answer';
  caption.textContent = `frame ${f.index} \\u00b7 ${f.time.toFixed(2)} s \\u00b7 speed ` +
    text(f.speed, 1, ' m/s') + ' \\u00b7 AbsRel ' + text(f.abs_rel, 3, '') +
    ' \\u00b7 ' + text(f.latency, 0, ' ms') + ' ';
  caption.prepend(tag, ' ');
  slider.value = now;
  if (cursor) { cursor.setAttribute('x1', f.x); cursor.setAttribute('x2', f.x); }
}
function stop() { clearInterval(timer); timer = null; button.textContent = 'Play'; }
button.onclick = () => {
  if (timer) return stop();
  button.textContent = 'Pause';
  timer = setInterval(() => show((now + 1) % frames.length), 100);
};
slider.oninput = () => { stop(); show(+slider.value); };
document.querySelectorAll('[data-frame]').forEach(e => {
  const i = +e.dataset.frame;
  const img = e.querySelectorAll('img');
  if (img.length) { img[0].src = frames[i].image; img[1].src = frames[i].depth; }
  e.onclick = () => { stop(); show(i); };
});
const timeline = document.getElementById('timeline');
if (timeline) timeline.onclick = event => {
  const box = timeline.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * timeline.viewBox.baseVal.width;
  let best = 0;
  frames.forEach((f, i) => { if (Math.abs(f.x - x) < Math.abs(frames[best].x - x)) best = i; });
  stop(); show(best);
};
document.onkeydown = event => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (step && event.target !== slider) { stop(); show(now + step); }
};
if (frames.length) show(START);
"""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title><style>@STYLE@</style></head>
<body><main>
<h1>@TITLE@</h1><p class="sub">@SUBTITLE@</p>
<div class="cards">@CARDS@</div>
<h2>The drive, frame by frame</h2>
@STAGE@
<h2>Model, speed and error over time</h2>
@TIMELINE@
<h2>Film strip</h2>
<div class="strip">@STRIP@</div>
<h2>Depth against the truth</h2>
@DEPTH@
<div class="two"><div><h2>Switches</h2>@SWITCHES@</div>
<div><h2>Latency</h2>@LATENCY@</div></div>
<h2>How this was made</h2>
@DETAILS@
</main>
<script type="application/json" id="frames">@FRAMES@</script>
<script>@SCRIPT@</script>
</body></html>
"""
