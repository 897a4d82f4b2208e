package cli

import (
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// EnvName returns the environment variable of a flag.
func EnvName(flag string) string {
	return "PULLEY_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// splitEnv returns the values in the environment variable of f: several, separated
// by newlines or semicolons, if the flag is repeatable.
func splitEnv(f *pflag.Flag, text string) []string {
	if !repeatable(f) {
		return []string{text}
	}
	var values []string
	for v := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == ';' }) {
		if v = strings.TrimSpace(v); v != "" {
			values = append(values, v)
		}
	}
	return values
}

var envReference = regexp.MustCompile(`\$?\$\{[^}]*\}?`)

// expandEnv replaces each ${NAME} with the environment variable NAME, which must
// be set, and $${ with ${.
func expandEnv(s string) (string, error) {
	var err error
	s = envReference.ReplaceAllStringFunc(s, func(ref string) string {
		if strings.HasPrefix(ref, "$$") {
			return ref[1:]
		}
		name, closed := strings.CutSuffix(ref[2:], "}")
		v, ok := os.LookupEnv(name)
		switch {
		case !closed:
			err = fmt.Errorf("%q is not closed", ref)
		case !ok:
			err = fmt.Errorf("environment variable %q is not set", name)
		}
		return v
	})
	return s, err
}

// kubernetesEnv matches the variables that Kubernetes puts into the environment of
// each container for a service whose name begins with pulley.
var kubernetesEnv = regexp.MustCompile(`^PULLEY_(.*_)?(SERVICE_(HOST|PORT)(_.*)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_.*)?)$`)

// warnUnknownEnv logs environment variables that begin with PULLEY_ and belong to
// no flag. They are not errors: other programs may use the prefix.
func warnUnknownEnv(log *slog.Logger, root *cobra.Command) {
	known := []string{EnvName("config")}
	for _, flag := range flagsUnder(root) {
		known = append(known, EnvName(flag))
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "PULLEY_") || slices.Contains(known, name) || kubernetesEnv.MatchString(name) {
			continue
		}
		log := log.With("name", name)
		if near := nearest(name, known); near != "" {
			log = log.With("did_you_mean", near)
		}
		log.Warn("unknown environment variable")
	}
}
