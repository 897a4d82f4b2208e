package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/worker"
)

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
