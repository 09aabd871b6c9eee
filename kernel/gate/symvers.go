package gate

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/kilnhq/kiln/kernel/module"
)

// ErrSymvers is wrapped by the errors for a file that is not a Module.symvers.
var ErrSymvers = errors.New("not a Module.symvers")

// Symbol is an exported symbol of a kernel.
type Symbol struct {
	CRC       uint32 // of its type; 0 if unknown
	GPL       bool   // only for modules with a GPL-compatible license
	Namespace string
	Module    string // the name of the module that exports it; empty for the kernel itself
}

// ParseSymvers reads a Module.symvers, which a kernel's build leaves behind
// (Documentation/kbuild/modules.rst): lines of five fields with tabs between
// them, CRC in hexadecimal, name, module ("vmlinux" for the kernel itself), kind
// of export and name space. The last may be missing, as it was until Linux 5.4.
func ParseSymvers(data []byte) (map[string]Symbol, error) {
	symbols := make(map[string]Symbol, bytes.Count(data, []byte("\n")))
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		fields := strings.Split(line, "\t")
		if len(fields) < 4 || len(fields) > 5 {
			return nil, fmt.Errorf("%w: line %d: %d fields, want CRC, symbol, module, export and name space with tabs between them", ErrSymvers, n, len(fields))
		}
		crc, err := strconv.ParseUint(fields[0], 0, 32)
		if err != nil || fields[1] == "" {
			return nil, fmt.Errorf("%w: line %d: %.80q, want a CRC such as 0x1234abcd and a symbol", ErrSymvers, n, line)
		}
		s := Symbol{CRC: uint32(crc)}
		switch fields[3] {
		case "EXPORT_SYMBOL":
		case "EXPORT_SYMBOL_GPL":
			s.GPL = true
		default:
			return nil, fmt.Errorf("%w: line %d: export %.80q, want EXPORT_SYMBOL or EXPORT_SYMBOL_GPL", ErrSymvers, n, fields[3])
		}
		if len(fields) == 5 {
			s.Namespace = fields[4]
		}
		if fields[2] != "vmlinux" {
			s.Module = moduleName(fields[2])
		}
		symbols[fields[1]] = s
	}
	return symbols, nil
}

// Symvers returns what the modules export as a Module.symvers, with which other
// modules can be built that use it.
func Symvers(modules []*module.Info) []byte {
	var b bytes.Buffer
	for _, m := range modules {
		for _, e := range m.Exports {
			kind := "EXPORT_SYMBOL"
			if e.GPL {
				kind += "_GPL"
			}
			fmt.Fprintf(&b, "0x%08x\t%s\t%s\t%s\t%s\n", e.CRC, e.Name, m.Name, kind, e.Namespace)
		}
	}
	return b.Bytes()
}

// systemMapExports returns the names of the symbols that the kernel itself
// exports, which System.map does not tell more of.
func systemMapExports(data []byte) map[string]Symbol {
	symbols := map[string]Symbol{}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) == 3 {
			if name, ok := strings.CutPrefix(fields[2], "__ksymtab_"); ok {
				symbols[name] = Symbol{}
			}
		}
	}
	return symbols
}
