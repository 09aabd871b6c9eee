//go:build !amd64

package vmware

import (
	"fmt"
	"runtime"
)

// Local returns the hypervisor that the program runs on.
func Local() (Port, error) {
	return nil, fmt.Errorf("%w: asking it is not supported on %s", ErrOther, runtime.GOARCH)
}
