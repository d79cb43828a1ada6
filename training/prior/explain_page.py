"""The frame of the prior's page: style and layout. Filled in by explain_report.py."""

STYLE = """
:root { --ink:#e8eaf0; --dim:#9aa3b5; --back:#12141c; --card:#1b1f2b; --line:#2c3243;
        --accent:#7aa2ff; }
* { box-sizing:border-box; }
body { margin:0; background:var(--back); color:var(--ink);
       font:15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width:1180px; margin:0 auto; padding:28px 20px 60px; }
h1 { font-size:26px; margin:0 0 2px; font-weight:650; }
h2 { font-size:17px; margin:34px 0 4px; font-weight:600; }
p { margin:0 0 10px; max-width:900px; }
p.sub, .dim, figcaption { color:var(--dim); } p.sub { margin:0 0 20px; }
p.dim { font-size:14px; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(165px,1fr)); gap:12px; }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px;
        padding:12px 16px; }
.card b { display:block; font-size:25px; font-weight:650; line-height:1.25; }
.card span { color:var(--dim); font-size:13px; }
.two { display:grid; grid-template-columns:1fr 1fr; gap:16px; align-items:start; }
@media (max-width:800px) { .two { grid-template-columns:1fr; } }
.maps { display:grid; grid-template-columns:repeat(auto-fit,minmax(340px,1fr)); gap:16px; }
.pair { display:flex; flex-wrap:wrap; gap:24px; align-items:flex-start; }
.pair > :first-child { flex:0 1 400px; } .pair > :last-child { flex:1 1 340px; }
figure { margin:0 0 12px; } figcaption { font-size:13px; margin-top:4px; }
img.map { width:100%; display:block; border-radius:6px; image-rendering:pixelated;
          border:1px solid var(--line); }
.scale { display:flex; gap:8px; align-items:center; font-size:12px; color:var(--dim); }
.scale i { display:inline-block; width:150px; height:9px; border-radius:3px; }
svg { width:100%; height:auto; display:block; background:var(--card);
      border:1px solid var(--line); border-radius:12px; margin-bottom:10px; }
svg text { fill:var(--dim); font:12px system-ui, sans-serif; } svg text.ink { fill:var(--ink); }
.tiles { display:grid; grid-template-columns:repeat(auto-fill,minmax(170px,1fr)); gap:12px; }
.tiles.large { grid-template-columns:repeat(auto-fill,minmax(340px,1fr)); }
.tile { font-size:12px; color:var(--dim); }
.tile b { color:var(--ink); font-size:14px; margin-right:6px; }
.tile img, .tile .none { width:100%; aspect-ratio:1.4; object-fit:cover; display:flex;
   border-radius:6px; border:3px solid var(--line); margin-bottom:2px; align-items:center;
   justify-content:center; text-align:center; background:#3a3f4d; padding:0; color:var(--ink); }
.tile .none { padding:10px; }
.tile.wide img, .tile.wide .none { aspect-ratio:auto; }
dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 16px; margin:0; font-size:14px; }
dt { color:var(--dim); } dd { margin:0; overflow-wrap:anywhere; }
code { font:13px ui-monospace, Menlo, Consolas, monospace; background:#0d0f15; padding:2px 6px;
       border-radius:4px; overflow-wrap:anywhere; }
"""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title><style>@STYLE@</style></head>
<body><main>
<h1>@TITLE@</h1><p class="sub">@SUBTITLE@</p>
<div class="cards">@CARDS@</div>
<h2>At which depths</h2>
@DEPTHS@
<h2>Where in the image</h2>
@PLACES@
<h2>From which recordings and images</h2>
@ORIGINS@
<h2>Whether what is looked up agrees with what is predicted</h2>
@AGREEMENT@
<h2>How many neighbours are looked up</h2>
@NEIGHBOURS@
<h2>How evenly the prior is used</h2>
@USE@
<h2>How this prior was made</h2>
@DETAILS@
</main></body></html>
"""
