package ops

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func hashOf(key string) string {
	sum := sha256.Sum256([]byte(strings.TrimSpace(key)))
	return hex.EncodeToString(sum[:])
}

func TestKeyAdd(t *testing.T) {
	s := newSite(t)
	code, key, stderr := s.run("key add --tenant acme --tier standard,batch --models llama*,qwen --rpm 600 --tpm 9000 --concurrency 4 --max-queue-share 20% --expires 24h")
	if code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	parts := regexp.MustCompile(`^sk-pulley-([a-z0-9]{10})-([A-Za-z0-9_-]{43})\n$`).FindStringSubmatch(key)
	if parts == nil {
		t.Fatalf("printed %q, want the key alone", key)
	}
	if !strings.Contains(stderr, "this is the first key") || strings.Contains(stderr, parts[2]) {
		t.Errorf("stderr %q", stderr)
	}
	got := s.keys()[parts[1]]
	if left := time.Until(got.Expires); left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("expires in %v, want 24h", left)
	}
	want := policy.Key{ID: parts[1], Tenant: "acme", Hash: hashOf(key), Tiers: []string{"standard", "batch"}, Models: []string{"llama*", "qwen"},
		RPM: 600, TPM: 9000, Concurrency: 4, MaxQueueShare: 20, Created: got.Created, Expires: got.Expires}
	if a, b := jsonOf(t, got), jsonOf(t, want); a != b {
		t.Errorf("stored %s\nwant %s", a, b)
	}

	var made madeKey
	if err := json.Unmarshal([]byte(s.ok("key add --tenant ci -o json")), &made); err != nil || s.keys()[made.ID].Hash != hashOf(made.Key) || made.Tenant != "ci" {
		t.Errorf("key add -o json: %+v, %v", made, err)
	}
	s.story(
		step{"key add", 2, `pulley: missing flag: --tenant NAME\nrun .*`},
		step{"key add --tenant acme --tier standrad", 3, `pulley: no tier "standrad"; did you mean "standard"\?\n`},
		step{"key add --tenant acme --rpm=-1", 2, `pulley: --rpm: -1: must be 0 \(no limit\) to 1000000000\nrun .*`},
		step{"key add --tenant acme --expires=-1h", 2, `pulley: --expires: must be more than 0, or 0 for a key that does not expire\nrun .*`},
		step{"key add --tenant acme -o table", 2, `pulley: --output "table": must be text, json or yaml\nrun .*`},
	)
	if n := len(s.keys()); n != 2 {
		t.Errorf("%d keys are stored, want 2", n)
	}
}

func TestKeysAreUnlike(t *testing.T) {
	seen := make(map[string]bool)
	for range 1000 {
		id := newKeyID()
		text, _ := newKey(id)
		if seen[id] || seen[text] || len(id) != 10 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			t.Fatalf("key %q, id %q", text, id)
		}
		seen[id], seen[text] = true, true
	}
}

func TestDamagedKeyIsListedAndRemoved(t *testing.T) {
	s := newSite(t)
	s.ok("key add --tenant acme")
	kv, err := s.js.KeyValue(t.Context(), subjects.KeysBucket)
	if err == nil {
		_, err = kv.PutString(t.Context(), subjects.APIKey("aaaaaaaaaa"), "{")
	}
	if err != nil {
		t.Fatal(err)
	}
	s.story(
		step{"key ls", 0, `(?s)ID .*aaaaaaaaaa +- +damaged .* acme +active .*`},
		step{"key set aaaaaaaaaa --rpm 20", 4, `pulley: key aaaaaaaaaa is damaged: .*; remove it with 'pulley key rm aaaaaaaaaa'\n`},
		step{"key rotate aaaaaaaaaa --force", 4, `pulley: key aaaaaaaaaa is damaged: .*`},
		step{"key rm aaaaaaaaaa --force", 0, `damaged key aaaaaaaaaa revoked\n`},
		step{"key ls", 0, `ID [^\n]*\n[^\n]* acme +active [^\n]*\n`},
	)
}

func TestKeyLife(t *testing.T) {
	s := newSite(t)
	s.story(step{"key ls", 0, `no keys: create one with .*`})
	var made madeKey
	if err := json.Unmarshal([]byte(s.ok("key add --tenant acme --tier batch --rpm 10 -o json")), &made); err != nil {
		t.Fatal(err)
	}
	id, old := made.ID, s.keys()[made.ID]
	s.story(
		step{"key ls", 0, `ID +TENANT +STATE +TIERS +MODELS +RPM +TPM +CONCURRENCY +EXPIRES\n` + id + ` +acme +active +batch +- +10 +- +- +-\n`},
		step{"key ls --tenant ci", 0, "no keys of tenant ci\n"},
		step{"key set " + id + " --rpm 20 --models llama", 0, "key " + id + " of tenant acme changed\n"},
		step{"key set " + id + " --models= --expires 1h", 0, "key " + id + " of tenant acme changed\n"},
		step{"key set " + id + " --rpm 20", 0, "key " + id + " of tenant acme unchanged\n"},
		step{"key set " + id + " --tier gold", 3, `pulley: no tier "gold".*`},
		step{"key set zzz --rpm 20", 3, `pulley: no key "zzz"; see 'pulley key ls'\n`},
		step{"key rm " + made.Key + " --force", 2, `pulley: use the id of the key, .*`},
		step{"key rotate " + id[:6] + " --overlap=-1s", 2, `pulley: --overlap -1s: must not be negative\nrun .*`},
		step{"key rotate " + id[:6], 4, `pulley: rotate key ` + id + ` of tenant acme; its old secret stops working at once: needs a confirmation, .*`},
	)
	if k := s.keys()[id]; k.Hash != old.Hash || k.RPM != 20 || k.Models != nil || !slices.Equal(k.Tiers, old.Tiers) || k.Expires.IsZero() {
		t.Errorf("key %+v", k)
	}

	code, rotated, stderr := s.run("key rotate " + id[:6] + " --overlap 1h")
	k := s.keys()[id]
	if code != 0 || k.Hash != hashOf(rotated) || k.OldHash != old.Hash || time.Until(k.OldUntil) < 59*time.Minute || k.RPM != 20 {
		t.Errorf("rotated: exit code %d, %s, %+v", code, stderr, k)
	}
	s.story(step{"key ls", 0, `.* acme +rotating .*`})
	again := s.ok("key rotate " + id + " --force")
	if k := s.keys()[id]; k.Hash != hashOf(again) || k.OldHash != "" || !k.OldUntil.IsZero() {
		t.Errorf("rotated at once: %+v", k)
	}
	for _, args := range []string{"key ls -o json", "key ls -o yaml", "key ls -o wide"} {
		if out := s.ok(args); strings.Contains(out, k.Hash) || strings.Contains(out, old.Hash) || strings.Contains(out, "hash") {
			t.Errorf("%s shows a hash:\n%s", args, out)
		}
	}

	s.story(
		step{"key rm " + id, 4, `pulley: revoke key ` + id + ` of tenant acme: needs a confirmation, and standard input is not a terminal; use --force to skip it\n`},
		step{"key rm " + id + " nope --force", 3, `pulley: no key "nope".*`},
		step{"key rm " + id + " --force", 0, `key ` + id + ` of tenant acme revoked\nwarning: that was the last key: .*`},
	)
	if keys := s.keys(); len(keys) != 0 {
		t.Errorf("keys %+v are left", keys)
	}
}
