package policy

// MayRun says whether a tenant of which own background responses run at a gateway may have another one run there, if free more
// could. A tenant alone gets three quarters of all. Several get equal parts, and however many have all that they may, a part is
// free for the next one: n tenants have 3/(3n+1) of all each.
func MayRun(own, free int) bool { return free > 0 && own < 3*free }
