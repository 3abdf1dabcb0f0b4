"""Tables, figures and pages made from results. Nothing here runs a model."""
