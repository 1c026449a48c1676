"""`make demo`: the real commands one after another on a few short videos, and a page that shows what came out."""
