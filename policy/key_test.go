package policy_test

import (
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/policy"
)

func FuzzKeyID(f *testing.F) {
	for _, key := range []string{
		"sk-pulley-abcdefghij-secret", "sk-pulley-abcdefghij--", "sk-pulley-abcdefghij-", "sk-pulley-abcdefghijk-secret",
		"sk-pulley-Abcdefghij-secret", " sk-pulley-abcdefghij-secret", "sk-pulley-abcdefgh\xff\xff-secret", "sk-pulley-",
	} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		id, ok := policy.KeyID(key)
		if !ok {
			if id != "" {
				t.Errorf("KeyID(%q) = %q, false", key, id)
			}
			return
		}
		if len(id) != 10 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			t.Errorf("KeyID(%q) = %q: not an id", key, id)
		}
		if secret, ok := strings.CutPrefix(key, "sk-pulley-"+id+"-"); !ok || secret == "" {
			t.Errorf("KeyID(%q) = %q: not a prefix of the key", key, id)
		}
	})
}
