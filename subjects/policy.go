package subjects

// Keys of the bucket PolicyBucket.
const (
	PolicyKey  = "policy" // the policy
	AllAPIKeys = keyPrefix + "*"

	keyPrefix = "key."
)

// APIKey is the bucket's key of an API key.
func APIKey(id string) string { return keyPrefix + id }

// policyHistory is how many versions of the policy are kept: as many as a bucket can keep.
const policyHistory = 64

// PolicyChanges is the subject on which changes of the policy and the API keys are announced.
const PolicyChanges = "pulley.policy"

// PolicyChanged announces a stored change, on PolicyNews. A part that misses it finds the change by polling the bucket.
type PolicyChanged struct {
	Key      string `json:"key"` // of the bucket
	Revision uint64 `json:"revision"`
}
