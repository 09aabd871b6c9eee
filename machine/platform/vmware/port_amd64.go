package vmware

import "fmt"

// Local returns the hypervisor that the program runs on. Executing IN on any other
// would end the program, so it is asked for its name first.
func Local() (Port, error) {
	const hypervisor = 1 << 31 // of CX: there is one
	if _, _, c, _ := cpuid(1); c&hypervisor == 0 {
		return nil, fmt.Errorf("%w: there is no hypervisor", ErrOther)
	}
	_, b, c, d := cpuid(0x40000000)
	var name []byte
	for _, r := range []uint32{b, c, d} {
		name = append(name, byte(r), byte(r>>8), byte(r>>16), byte(r>>24))
	}
	if string(name) != "VMwareVMware" {
		return nil, fmt.Errorf("%w: the hypervisor is %q", ErrOther, name)
	}
	return local{}, nil
}

type local struct{}

func (local) In(r *Registers) { in(r) }

//go:noescape
func in(r *Registers)

//go:noescape
func cpuid(leaf uint32) (a, b, c, d uint32)
