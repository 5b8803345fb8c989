// Functions without a body, which go:linkname finds elsewhere, want a file of
// assembly in their package.
