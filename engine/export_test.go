package engine

// ProbeAll is Local at other addresses.
var ProbeAll = probeAll
