package gpu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Throttle says why the clocks are below their maximum, as NVML's bits. In JSON it is a list of names.
type Throttle uint64

// The reasons.
const (
	ThrottleIdle          Throttle = 1 << iota // the GPU is idle
	ThrottleAppClocks                          // clocks set by an application or a user
	ThrottlePowerCap                           // at the power limit, which is normal under load
	ThrottleHardware                           // slowdown by the hardware: heat, power or a failure
	ThrottleSyncBoost                          // as slow as another GPU of its sync group
	ThrottleThermal                            // slowdown by the driver, for heat
	ThrottleHardwareHeat                       // slowdown by the hardware, for heat
	ThrottleHardwarePower                      // slowdown requested by the power supply
	ThrottleDisplay                            // clocks required by a display
)

var throttleNames = []string{"idle", "app_clocks", "power_cap", "hw_slowdown", "sync_boost", "thermal", "hw_thermal", "hw_power_brake", "display"}

// AllThrottle maps every named reason to its name.
func AllThrottle() map[Throttle]string {
	all := make(map[Throttle]string, len(throttleNames))
	for i, name := range throttleNames {
		all[1<<i] = name
	}
	return all
}

// Hard reports whether the hardware slows the GPU down, to about half its speed.
func (t Throttle) Hard() bool {
	return t&(ThrottleHardware|ThrottleHardwareHeat|ThrottleHardwarePower) != 0
}

// Hot reports whether the driver slows the GPU down to cool it.
func (t Throttle) Hot() bool { return t&ThrottleThermal != 0 }

// Reasons returns the names of the bits; unknown bits are numbers.
func (t Throttle) Reasons() []string {
	reasons := []string{}
	for i, name := range throttleNames {
		if t&(1<<i) != 0 {
			reasons = append(reasons, name)
		}
	}
	if rest := t &^ (1<<len(throttleNames) - 1); rest != 0 {
		reasons = append(reasons, fmt.Sprintf("%#x", uint64(rest)))
	}
	return reasons
}

func (t Throttle) String() string {
	if t == 0 {
		return "none"
	}
	return strings.Join(t.Reasons(), ",")
}

// MarshalJSON writes a list of names.
func (t Throttle) MarshalJSON() ([]byte, error) { return json.Marshal(t.Reasons()) }

// UnmarshalJSON reads what MarshalJSON writes.
func (t *Throttle) UnmarshalJSON(b []byte) error {
	var reasons []string
	if err := json.Unmarshal(b, &reasons); err != nil {
		return err
	}
	*t = 0
next:
	for _, r := range reasons {
		for i, name := range throttleNames {
			if r == name {
				*t |= 1 << i
				continue next
			}
		}
		bits, err := strconv.ParseUint(r, 0, 64)
		if err != nil {
			return fmt.Errorf("throttle reason %q: unknown", r)
		}
		*t |= Throttle(bits)
	}
	return nil
}
