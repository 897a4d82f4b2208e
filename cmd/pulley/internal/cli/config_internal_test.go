package cli

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func FuzzExpandEnv(f *testing.F) {
	for _, s := range []string{"${HOME}", "$${HOME}", "${", "a$b", "${}", "$$${x}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := expandEnv(s)
		if err == nil && !strings.Contains(s, "${") && got != s {
			t.Errorf("expandEnv(%q) = %q, want it as it is", s, got)
		}
	})
}

func FuzzConfigFile(f *testing.F) {
	f.Add("listen: a\nbroker: {listen: b}\n")
	f.Add("a: &a [*a]\n")
	f.Add("? [a]\n: b\n")
	f.Fuzz(func(t *testing.T, text string) {
		top, err := ParseYAML([]byte(text))
		if err != nil || top == nil {
			return
		}
		other := &cobra.Command{Use: "broker", RunE: func(*cobra.Command, []string) error { return nil }}
		other.Flags().String("listen", "default", "")
		root := NewRoot("", "test", other)
		c := configFile{path: "f", settings: map[string]setting{}}
		c.read(top, root, []*cobra.Command{subcommands(root)["broker"]}, true)
		for _, s := range c.settings {
			if f := subcommands(root)["broker"].Flags().Lookup(s.key.Value); f != nil {
				s.set(subcommands(root)["broker"], f)
			}
		}
	})
}

func TestSize(t *testing.T) {
	tests := []struct {
		text string
		want int64
		back string
	}{
		{"8MiB", 8 << 20, "8MiB"}, {"8 M", 8 << 20, "8MiB"}, {"1000", 1000, "1000"}, {"1024B", 1024, "1KiB"},
		{"2GB", 2e9, "1953125KiB"}, {"0", 0, "0"}, {"3TiB", 3 << 40, "3TiB"},
	}
	for _, tt := range tests {
		var s sizeValue
		if err := s.Set(tt.text); err != nil || int64(s) != tt.want || s.String() != tt.back {
			t.Errorf("Set(%q) = %v, gives %d, %q; want %d, %q", tt.text, err, int64(s), &s, tt.want, tt.back)
		}
	}
	for _, bad := range []string{"", "MiB", "-1", "1.5GiB", "9999999TiB", "1XB"} {
		var s sizeValue
		if err := s.Set(bad); err == nil {
			t.Errorf("Set(%q) gives %d, want an error", bad, int64(s))
		}
	}
}
