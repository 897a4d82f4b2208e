package engine_test

import (
	"testing"

	"github.com/pulley-lb/pulley/engine/sim"
)

// newSim is a simulated engine with the model "m", unless cfg names others.
func newSim(t testing.TB, cfg sim.Config) *sim.Engine {
	t.Helper()
	if cfg.Models == nil {
		cfg.Models = []string{"m"}
	}
	eng, err := sim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return eng
}
