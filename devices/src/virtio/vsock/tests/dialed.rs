//! The tests of connections again, with a process of its own that connects.

use super::guest::DIALED;

macro_rules! dialed {
    ($($module:ident: $($name:ident)*;)*) => {
        $($(
            #[test]
            fn $name() {
                DIALED.set(true);
                super::$module::$name();
            }
        )*)*
    };
}

dialed! {
    connections:
        a_connection_of_the_guest_reaches_the_socket_of_its_port
        a_port_without_a_listener_refuses
        a_process_of_the_host_is_told_the_port_and_then_talks_to_the_guest
        a_process_that_the_guest_refuses_is_left
        processes_get_ports_of_their_own
        a_process_that_sends_nothing_times_out_and_delays_no_other
        many_silent_processes_give_way_to_one_that_speaks
        each_direction_ends_by_itself
        the_host_ends_its_direction_and_reads_on
        a_host_that_reads_no_more_is_known_to_the_guest
        a_guest_that_reads_no_more_is_known_to_the_host
        what_was_sent_before_the_guest_closed_arrives
        a_host_that_vanishes_is_forgotten_even_if_the_guest_says_nothing
        a_host_that_leaves_bytes_unread_resets_the_connection
        a_guest_that_resets_ends_the_hosts_connection
        a_second_request_resets_the_first
        packets_that_belong_nowhere_are_answered_with_a_reset_and_resets_with_nothing
        a_reset_of_the_device_ends_everything_and_it_works_again
        more_connections_than_sockets_are_refused_and_then_possible_again
        a_thousand_connections_to_a_listener_that_takes_its_time
        a_listener_that_never_takes_anybody_refuses_in_time;
    suspend:
        a_suspended_device_touches_nothing_and_goes_on_with_its_connections
        no_time_passes_for_a_suspended_device
        a_device_in_its_place_tells_the_driver_that_its_connections_are_gone
        a_driver_without_an_event_buffer_is_told_once_it_has_one
        a_reset_while_it_is_suspended_ends_everything;
    flow:
        the_guest_may_send_what_it_was_told_and_hears_when_there_is_room_again
        what_the_host_has_sent_is_read_to_many_buffers_at_once
        a_guest_that_sends_more_than_it_may_is_reset
        the_guest_gets_no_more_than_it_has_room_for
        the_end_needs_no_room
        what_the_guest_has_no_buffers_for_waits_at_the_host
        connections_take_turns
        answers_that_the_guest_has_no_buffers_for_stop_its_questions;
}
