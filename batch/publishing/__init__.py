"""From finished lists to what serves: writing aside, checking, going live, clearing away."""
