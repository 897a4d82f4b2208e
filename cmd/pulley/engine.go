package main

import (
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

const engineHelp = "`URL[,KEY=VALUE]...` of an engine (repeatable); keys: " + engineKeys

const engineKeys = "name, model, pool, slots, profile, weight, gpus, dialect, metrics, baseline-itl, swap-after, preload, key-env"

// parseEngine parses a value of --engine. The key model may be given several times.
func parseEngine(spec string) (worker.Config, error) {
	var cfg worker.Config
	bad := func(format string, args ...any) (worker.Config, error) {
		return cfg, cli.Usagef("--engine %q: %s", spec, fmt.Sprintf(format, args...))
	}
	parts := strings.Split(spec, ",")
	cfg.Engine = parts[0]
	if name, rest, ok := strings.Cut(parts[0], "="); ok && strings.Contains(rest, "://") && !strings.Contains(name, "://") {
		cfg.Name, cfg.Engine = name, rest // name=URL
	}
	var err error
	if !isHTTP(cfg.Engine) {
		return bad("%q is not a URL such as http://127.0.0.1:8000", cfg.Engine)
	}
	for _, p := range parts[1:] {
		k, v, _ := strings.Cut(p, "=")
		if v == "" {
			return bad("%q has no value; must be URL[,KEY=VALUE]..., such as http://127.0.0.1:8000,slots=64", p)
		}
		switch k {
		case "model":
			cfg.Models = append(cfg.Models, v)
		case "pool":
			cfg.Pool = v
		case "slots":
			if cfg.Slots, err = strconv.Atoi(v); err != nil || cfg.Slots < 1 {
				return bad("slots=%s: must be 1 or more", v)
			}
		case "name":
			cfg.Name = v
		case "weight":
			if cfg.Weight, err = strconv.ParseFloat(v, 64); err != nil || !(cfg.Weight > 0) || cfg.Weight > 1e6 {
				return bad("weight=%s: must be a number above 0", v)
			}
		case "profile":
			if cfg.Profile, err = parseProfile(v); err != nil {
				return bad("profile %v", err)
			}
		case "gpus":
			if cfg.GPUs, err = parseGPUs(v); err != nil {
				return bad("%v", err)
			}
		case "dialect":
			if cfg.Dialect, err = engine.ParseDialect(v); err != nil {
				return bad("dialect %v", err)
			}
		case "metrics":
			if cfg.MetricsURL = v; !isHTTP(v) {
				return bad("metrics=%s: must be a URL such as http://127.0.0.1:8002/metrics", v)
			}
		case "baseline-itl":
			if cfg.Baseline, err = time.ParseDuration(v); err != nil || cfg.Baseline <= 0 {
				return bad("baseline-itl=%s: must be the time per token of a request that runs alone, such as 12ms", v)
			}
		case "swap-after":
			if cfg.SwapAfter, err = time.ParseDuration(v); err != nil || cfg.SwapAfter <= 0 {
				return bad("swap-after=%s: must be a duration such as 10s", v)
			}
		case "preload":
			cfg.Preload = append(cfg.Preload, preloadModels([]string{v})...)
		case "key-env":
			if cfg.APIKey = os.Getenv(v); cfg.APIKey == "" {
				return bad("environment variable %s is empty or not set", v)
			}
		default:
			return bad("unknown key %q%s; keys: %s", k, cli.DidYouMean(k, strings.Split(engineKeys, ", ")), engineKeys)
		}
	}
	if cfg.Pool != "" && len(cfg.Models) > 1 {
		return bad("pool= allows one model=, not %d", len(cfg.Models))
	}
	return cfg, nil
}

// gpuName matches the name of a GPU in gpus=: NVML's index, index:number for a MIG instance, or a UUID or a unique
// beginning of one.
var gpuName = regexp.MustCompile(`^([0-9]+(:[0-9]+)?|(GPU|MIG)-[-0-9A-Fa-f/]{4,})$`)

func parseGPUs(text string) ([]string, error) {
	names := strings.Split(text, "+")
	for i, n := range names {
		if !gpuName.MatchString(n) {
			return nil, fmt.Errorf("gpus=%s: %q is neither an index nor a UUID; examples: 0+1, 0:1 for a MIG instance, GPU-1f2e3d4c", text, n)
		}
		if slices.Contains(names[:i], n) {
			return nil, fmt.Errorf("gpus=%s: %s is named twice", text, n)
		}
	}
	return names, nil
}

// isHTTP says whether text is a URL of HTTP or HTTPS.
func isHTTP(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

func parseProfile(name string) (policy.Profile, error) {
	p, ok := policy.ProfileNamed(name)
	if !ok || name == "" {
		return p, fmt.Errorf("%q: must be %s%s", name, cli.OneOf(profileNames()), cli.DidYouMean(name, profileNames()))
	}
	return p, nil
}

func profileNames() []string {
	return fleet.NamesOf(policy.Profiles, func(p policy.Profile) string { return p.Name })
}
