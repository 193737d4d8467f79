// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page requests of endpoints, and PAGE_RESP.

use alloc::vec::Vec;
use core::time::Duration;

use crate::page_request::Outstanding;
use crate::{
    Change, EndpointId, Features, PageAnswer, PageRequest, PageRequestSupport, Pasid, Reject, RequestGroup,
    ResponseCode,
};

use super::{Device, Verdict};

impl Device {
    /// An endpoint asks for pages: all requests of a group, the last of them marked so for the driver. The outside knows
    /// the group by `cookie`; `now` is the time since any one moment.
    ///
    /// False when the driver does not get to know of them. Then, and in all other cases where the driver does not answer,
    /// [`take_page_answers`](Device::take_page_answers) has the answer: to be looked at after each call that
    /// changes the device. A group whose number is used anew has been given up by the endpoint, and gets an answer too.
    pub fn request_pages(
        &mut self,
        to: RequestGroup,
        cookie: u64,
        pages: &[PageRequest],
        now: Duration,
    ) -> bool {
        self.end_request(to);
        let Some(support) = self.check_page_request(&to, pages.len()) else {
            self.page_requests.refuse_new(to, cookie);
            return false;
        };
        let deadline = now.saturating_add(support.timeout);
        self.page_requests.insert(to, Outstanding { cookie, pages: pages.len(), deadline });
        self.events.push_pages(to, pages);
        true
    }

    /// Answers the groups that the driver has not answered in time.
    pub fn expire_page_requests(&mut self, now: Duration) {
        //= tables#PAGE_RESP T53
        // One that is being answered is left alone: its answer is on its way.
        let under_way = self.group_under_way();
        let expired: Vec<_> =
            self.page_requests.expired(now).filter(|group| Some(*group) != under_way).collect();
        expired.into_iter().for_each(|group| self.end_request(group));
    }

    /// When [`expire_page_requests`](Device::expire_page_requests) has something to do, if nothing changes until then.
    pub fn next_page_deadline(&self) -> Option<Duration> {
        self.page_requests.next_deadline(self.group_under_way())
    }

    /// Answers everything that an endpoint waits for, since it is gone.
    pub fn end_page_requests(&mut self, endpoint: EndpointId) {
        self.end_requests(|group| group.endpoint == endpoint);
    }

    /// The answers that the device has given in the driver's stead since the last call.
    pub fn take_page_answers(&mut self) -> Vec<PageAnswer> {
        self.page_requests.take_answers()
    }

    pub(super) fn check_page_response(
        &self,
        to: RequestGroup,
        code: ResponseCode,
    ) -> Result<Verdict, Reject> {
        //= tables#PAGE_RESP T51
        // Answered already, or never asked: to the driver that is the same.
        if !self.endpoints.contains_key(&to.endpoint) {
            return Err(Reject::NoEndpoint(to.endpoint));
        }
        let cookie = self.page_requests.cookie(&to).ok_or(Reject::NoRequest(to))?;
        Ok(Verdict::Change(Change::Respond { to, cookie, code }))
    }

    pub(super) fn commit_page_response(&mut self, to: RequestGroup, cookie: u64) {
        //= tables#PAGE_RESP T52 T56
        // Not before the host has it: it can be tried again until then.
        if self.page_requests.answered(&to, cookie) {
            self.events.remove_group(to);
        }
    }

    /// The table of an endpoint or of a PASID goes, and with it all that came through it.
    pub(super) fn end_requests_of_table(&mut self, id: EndpointId, pasid: Option<Pasid>) {
        let holds_pasids = self.endpoints.get(&id).and_then(|endpoint| endpoint.table).is_some_and(|table| {
            // Of an endpoint's own table only: a PASID's holds itself.
            pasid.is_none() && table.format().row().holds_pasids
        });
        self.end_requests(|group| group.endpoint == id && (holds_pasids || group.pasid == pasid));
    }

    pub(super) fn end_requests(&mut self, is_over: impl Fn(&RequestGroup) -> bool) {
        //= tables#PAGE_RESP T54
        // No endpoint waits for an answer that cannot come.
        let over: Vec<_> = self.page_requests.groups().filter(is_over).collect();
        over.into_iter().for_each(|group| self.end_request(group));
    }

    pub(super) fn end_request(&mut self, group: RequestGroup) {
        if self.page_requests.cookie(&group).is_some() {
            self.page_requests.refuse(group);
            self.events.remove_group(group);
        }
    }

    /// How the endpoint asks, if it may and there is room.
    fn check_page_request(&self, to: &RequestGroup, pages: usize) -> Option<PageRequestSupport> {
        //= tables#PAGE_RESP T55a T55b
        // Whoever has no table has no page to wait for.
        let endpoint = self.endpoints.get(&to.endpoint)?;
        let own_format = endpoint.table.map(|table| table.format().row());
        let has_table = match to.pasid {
            Some(pasid) => {
                endpoint.pasids.contains_key(&pasid) || own_format.is_some_and(|row| row.holds_pasids)
            }
            None => own_format.is_some(),
        };
        let support = endpoint.tables.and_then(|tables| tables.page_requests)?;
        let groups = self.page_requests.count_of(to.endpoint) as u64;
        let pages_then = self.page_requests.pages().saturating_add(pages);
        let has_room = groups < u64::from(support.requests_max)
            && pages_then <= self.config.limits.page_requests_max
            && pages > 0;
        let is_offered = self.negotiated.contains(Features::ATTACH_TABLE);
        (has_table && has_room && is_offered).then_some(support)
    }

    fn group_under_way(&self) -> Option<RequestGroup> {
        match self.change_under_way() {
            Some(Change::Respond { to, .. }) => Some(to),
            _ => None,
        }
    }
}
