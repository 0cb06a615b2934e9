"""Tests stand inside the package so that they import it relatively; the wheel leaves them out."""
