"""HTTP in: the REST API, its documentation and the admin pages."""
