package gateway

import (
	"net/http"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
)

// A gateway that has just started does not say of a model that it does not exist: clients would not ask again.
func TestUnknownModelAtTheStart(t *testing.T) {
	ro := &router{fleet: newFleet(), bus: new(bus)}
	ro.bus.rules.Store(newRules(policystore.Version{Policy: policy.Default()}))
	if e := ro.unknown("m"); e.Status != http.StatusServiceUnavailable || e.Code != "starting" || e.RetryAfter == 0 {
		t.Errorf("before the pools are known: %+v", e)
	}
	ro.fleet.addPools([]string{"n"}, time.Now())
	if e := ro.unknown("m"); e.Status != http.StatusNotFound || e.Code != "model_not_found" {
		t.Errorf("afterwards: %+v", e)
	}
}
