package main

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

const engineHelp = "`URL[,KEY=VALUE]...` of an engine (repeatable); keys: " + engineKeys

const engineKeys = "name, model, pool, slots, dp, profile, weight, gpus, dialect, metrics, baseline-itl, swap-after, preload, " +
	"key-env, key-file, username, password-env, password-file, tls-ca, tls-cert, tls-key, tls-verify, id"

// completeEngine completes the keys of --engine after its URL, and the values of those that have fixed ones.
func completeEngine(_ *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	i := strings.LastIndexByte(toComplete, ',') + 1
	if i == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	done, part := toComplete[:i], toComplete[i:]
	var list []string
	add := func(words ...string) {
		for _, w := range words {
			if strings.HasPrefix(w, part) {
				list = append(list, done+w)
			}
		}
	}
	switch k, _, hasValue := strings.Cut(part, "="); {
	case !hasValue:
		for key := range strings.SplitSeq(engineKeys, ", ") {
			add(key + "=")
		}
	case k == "profile":
		for _, name := range profileNames() {
			add("profile=" + name)
		}
	case k == "tls-verify":
		add("tls-verify=on", "tls-verify=off")
	}
	return list, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// parseEngine parses a value of --engine. The key model may be given several times.
func parseEngine(spec string) (worker.Config, error) {
	var cfg worker.Config
	bad := func(format string, args ...any) (worker.Config, error) {
		return cfg, cli.Usagef("--engine %q: %s", shownSpec(spec), fmt.Sprintf(format, args...))
	}
	parts := strings.Split(spec, ",")
	cfg.Engine = parts[0]
	if name, rest, ok := strings.Cut(parts[0], "="); ok && strings.Contains(rest, "://") && !strings.Contains(name, "://") {
		cfg.Name, cfg.Engine = name, rest // name=URL
	}
	at, err := engine.ParseAddress(cfg.Engine)
	if err != nil {
		return bad("%s", plain.Error(err))
	}
	cfg.Engine = at.URL
	for _, p := range parts[1:] {
		k, v, _ := strings.Cut(p, "=")
		if v == "" {
			return bad("%q has no value; must be URL[,KEY=VALUE]..., such as http://127.0.0.1:8000,slots=64", shownPart(p))
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
		case "dp":
			if cfg.Ranks, err = strconv.Atoi(v); err != nil || cfg.Ranks < 1 || cfg.Ranks > 256 {
				return bad("dp=%s: must be the number of data-parallel ranks, 1 to 256", v)
			}
		case "name":
			cfg.Name = v
		case "id":
			if err := worker.CheckID(v); err != nil {
				return bad("%s", plain.Error(err))
			}
			cfg.ID = v
		case "weight":
			if cfg.Weight, err = strconv.ParseFloat(v, 64); err != nil || !(cfg.Weight > 0) || cfg.Weight > 1e6 {
				return bad("weight=%s: must be a number above 0", v)
			}
		case "profile":
			if cfg.Profile, err = parseProfile(v); err != nil {
				return bad("profile %s", plain.Error(err))
			}
		case "gpus":
			if cfg.GPUs, err = parseGPUs(v); err != nil {
				return bad("%s", plain.Error(err))
			}
		case "dialect":
			if cfg.Dialect, err = engine.ParseDialect(v); err != nil {
				return bad("dialect %s", plain.Error(err))
			}
		case "metrics":
			if cfg.MetricsURL = v; !isHTTP(v) {
				return bad("metrics=%s: must be a URL such as http://127.0.0.1:8002/metrics", engine.ShowURL(v))
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
			if cfg.Credentials.Key = secretIn(v); cfg.Credentials.Key == "" {
				return bad("environment variable %s is empty or not set", v)
			}
		case "key-file":
			cfg.Credentials.KeyFile = v
		case "username":
			cfg.Credentials.User = v
		case "password-env":
			if cfg.Credentials.Password = secretIn(v); cfg.Credentials.Password == "" {
				return bad("environment variable %s is empty or not set", v)
			}
		case "password-file":
			cfg.Credentials.PasswordFile = v
		case "tls-ca":
			cfg.TLS.CA = v
		case "tls-cert":
			cfg.TLS.Cert = v
		case "tls-key":
			cfg.TLS.Key = v
		case "tls-verify":
			if v != "on" && v != "off" {
				return bad("tls-verify=%s: must be on or off", v)
			}
			cfg.TLS.Insecure = v == "off"
		default:
			return bad("unknown key %q%s; keys: %s", k, cli.DidYouMean(k, strings.Split(engineKeys, ", ")), engineKeys)
		}
	}
	if cfg.Pool != "" && len(cfg.Models) > 1 {
		return bad("pool= allows one model=, not %d", len(cfg.Models))
	}
	if cfg.Credentials, err = cfg.Credentials.With(at); err != nil {
		return bad("%s", plain.Error(err))
	}
	if _, err := engineClient(cfg); err != nil { // files that cannot be read are an error at the start only
		return bad("%s", plain.Error(err))
	}
	return cfg, nil
}

// secretIn returns an environment variable with a secret, without white space around it.
func secretIn(variable string) engine.Secret {
	return engine.Secret(strings.TrimSpace(os.Getenv(variable)))
}

// engineClient returns a client that calls an engine before its worker does.
func engineClient(cfg worker.Config) (*http.Client, error) {
	c, err := engine.NewClient(engine.ClientConfig{
		URL: cfg.Engine, Credentials: cfg.Credentials, TLS: cfg.TLS, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment},
	})
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: c, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

// shownSpec returns a value of --engine as it may be shown: without the password of its URL, and without values that it
// should not have, such as a key in place of the name of its file.
func shownSpec(spec string) string {
	parts := strings.Split(spec, ",")
	for i, p := range parts {
		parts[i] = shownPart(p)
	}
	return strings.Join(parts, ",")
}

func shownPart(p string) string {
	if strings.Contains(p, "://") || strings.Contains(p, "@") {
		return engine.ShowURL(p)
	}
	k, v, ok := strings.Cut(p, "=")
	if !ok || v == "" || slices.Contains(strings.Split(engineKeys, ", "), k) {
		return p
	}
	return k + "=…"
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
