package module

import (
	"fmt"
	"strings"

	"github.com/kilnhq/kiln/kernel/modalias"
)

// checkPattern refuses patterns that cannot match a module's path.
func checkPattern(pattern string) error {
	switch {
	case pattern == "":
		return fmt.Errorf("module pattern is empty")
	case strings.HasPrefix(pattern, "/"):
		return fmt.Errorf("module pattern %q begins with a slash; paths are relative to /lib/modules/RELEASE, as kernel/fs/ext4/ext4.ko", pattern)
	case strings.Count(pattern, "[") != strings.Count(pattern, "]"):
		return fmt.Errorf("module pattern %q has unmatched brackets", pattern)
	}
	return nil
}

// matchPath reports whether the elements of a pattern match those of a path.
func matchPath(pattern, elements []string) bool {
	// reach[i] tells whether the pattern so far matches the first i elements.
	reach := make([]bool, len(elements)+1)
	reach[0] = true
	for _, p := range pattern {
		if p == "**" {
			for i := 1; i < len(reach); i++ {
				reach[i] = reach[i] || reach[i-1]
			}
			continue
		}
		for i := len(elements); i > 0; i-- {
			reach[i] = reach[i-1] && modalias.Match(p, elements[i-1])
		}
		reach[0] = false
	}
	return reach[len(elements)]
}
