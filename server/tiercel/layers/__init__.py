"""The building blocks of a Falcon layer. They hold weights; a step comes as arguments."""
