"""The finance API: months, rates, credits and adjustments, where two people are needed for what one could do wrong."""
