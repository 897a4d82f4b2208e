package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/worker"
)

func TestParseEngine(t *testing.T) {
	t.Setenv("ENGINE_KEY", "secret")
	for spec, want := range map[string]worker.Config{
		"http://h:1":                      {Engine: "http://h:1"},
		"big=http://h:1,slots=64":         {Engine: "http://h:1", Name: "big", Slots: 64},
		"http://h:1,model=a,model=b":      {Engine: "http://h:1", Models: []string{"a", "b"}},
		"http://h:1,pool=canary":          {Engine: "http://h:1", Pool: "canary"},
		"http://h:1,pool=canary,model=m":  {Engine: "http://h:1", Pool: "canary", Models: []string{"m"}},
		"http://h:1,name=n,weight=0.5":    {Engine: "http://h:1", Name: "n", Weight: 0.5},
		"https://h/v1,key-env=ENGINE_KEY": {Engine: "https://h/v1", APIKey: "secret"},
	} {
		if got, err := parseEngine(spec); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v %v, want %+v", spec, got, err, want)
		}
	}
	for spec, want := range map[string]string{
		"h:1":                                   "no URL",
		"http://h:1,slots=0":                    "slots=0",
		"http://h:1,weight=-1":                  "weight=-1",
		"http://h:1,pool=":                      `"pool=" has no value`,
		"http://h:1,pool=p,model=a,model=b":     "a pool takes one model, and 2 are named",
		"http://h:1,tier=x":                     `there is no "tier"`,
		"http://h:1,key-env=PULLEY_NO_SUCH_KEY": "PULLEY_NO_SUCH_KEY is empty",
	} {
		if _, err := parseEngine(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", spec, err, want)
		}
	}
}

func TestAPartThatWasOrderedToLeaveEndsAlone(t *testing.T) {
	forever := func(ctx context.Context) error { <-ctx.Done(); return nil }
	after := func(d time.Duration, err error) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(d):
				return err
			}
		}
	}
	broken := errors.New("broken")
	for what, c := range map[string]struct {
		stages [][]part
		took   time.Duration
		want   string
	}{
		"the others go on":           {[][]part{{{"a", after(time.Second, worker.ErrDrained)}, {"b", after(time.Minute, broken)}}}, time.Minute, "b: broken"},
		"with those of other stages": {[][]part{{{"a", after(time.Second, worker.ErrDrained)}}, {{"b", forever}}}, time.Hour, "<nil>"},
		"until all have left":        {[][]part{{{"a", after(time.Second, worker.ErrDrained)}, {"b", after(time.Minute, worker.ErrDrained)}}}, time.Minute, "<nil>"},
		"no end of its own":          {[][]part{{{"a", after(time.Second, nil)}, {"b", forever}}}, time.Second, "a: ended by itself"},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			begun := time.Now()
			err := runParts(ctx, c.stages)
			if fmt.Sprint(err) != c.want || time.Since(begun) != c.took {
				t.Errorf("%s: %v after %v, want %v after %v", what, err, time.Since(begun), c.want, c.took)
			}
		})
	}
}
