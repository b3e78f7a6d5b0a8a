"""Load generator behind `tiercel bench`: a cheap client, named scenarios, their figures."""
