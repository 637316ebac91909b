"""Pure planners: from what is known of a transaction to the steps that may be taken now."""
