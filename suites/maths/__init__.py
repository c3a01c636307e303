"""The maths suite: problems answered by a real model under each method, judged, as accuracy."""
