package gpu

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestDiagnose(t *testing.T) {
	if f := Diagnose(nil); f != nil {
		t.Errorf("of nil: %v", f)
	}
	if f := Diagnose(fmt.Errorf("ask: %w", &Failure{Kind: Mismatch})); f.Kind != Mismatch {
		t.Errorf("of a wrapped failure: %v", f)
	}
	if f := Diagnose(errors.New("no idea")); f.Kind != Other || !strings.HasSuffix(f.Error(), "no idea") {
		t.Errorf("of another error: %v", f)
	}
}

func TestEachFailureHasASentenceAndARemedy(t *testing.T) {
	for _, k := range []Kind{Unsupported, NoGPU, NoLibrary, NoDriver, NoAccess, Mismatch, NoPermission, Crashed, Silent, NoneVisible, NotThere, Other} {
		if f := (&Failure{Kind: k}); f.Error() == "" || f.Remedy() == "" {
			t.Errorf("%s: %q, %q", k, f.Error(), f.Remedy())
		}
	}
}
